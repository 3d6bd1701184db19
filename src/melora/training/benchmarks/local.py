"""lm-eval's own task definitions on rows from a local folder in place of the hub's: same prompts, shots and metrics.

One correction: the answers of bbh_fewshot lose the space before them, see `_without_spaces`.
"""

import copy
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory

from ...errors import MeloraError
from .humaneval import HUMANEVAL

MMLU = "cais/mmlu"
_MMLU_SHOTS = 5  # the published protocol; lm-eval's definition leaves the number open, which would be none
_BBH_ANSWERS = "bbh_fewshot"
_STRIP = "remove_whitespace"  # lm-eval's own filter; its name stands beside the metric's


def local_tasks(folder: Path | None) -> TaskManager:
    """lm-eval's tasks; those that `folder` has rows for take them from there.

    Args:
        folder: holds mmlu/{dev,test}.parquet, bbh/test.parquet, gsm8k/{train,test}.parquet or humaneval/test.parquet,
            those that are wanted. None: all from the hub.

    Raises:
        MeloraError: there is no such folder, or none of these is in it.
    """
    manager = copy.copy(_all_tasks())
    found = {} if folder is None else _found(folder)
    # The manager builds every task, also those in groups, through its factory.
    manager._factory = _LocalFactory(found)
    return manager


@cache
def _all_tasks() -> TaskManager:
    """Found once: lm-eval reads thousands of files for it, which takes seconds."""
    return TaskManager()


class _LocalFactory(TaskFactory):
    def __init__(self, found: dict[str, Callable[..., Any]]) -> None:
        super().__init__()
        self.found = found

    def _load_full_config(self, entry: Any, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
        if entry.name == "humaneval" and "openai/openai_humaneval" in self.found:
            # Reading lm-eval's definition fetches a metric from the hub.
            config = {**HUMANEVAL, **(overrides or {}), "metadata": {"version": 1.0, "config_source": "melora"}}
        else:
            config = super()._load_full_config(entry, overrides)
        if entry.name.startswith(_BBH_ANSWERS):
            _without_spaces(config)
        source = config.get("dataset_path")
        if source == MMLU and "task" in config and config.get("num_fewshot") is None:
            config["num_fewshot"] = _MMLU_SHOTS
        if source in self.found:
            config["custom_dataset"] = partial(self.found[source], config.get("dataset_name"))
        return config


def _without_spaces(config: dict[str, Any]) -> None:
    """Compare a task's answers without the white space around them, and have its group average those scores.

    The prompt ends in "A:", so byte-level tokenizers (GPT-2's, Llama 3's, SmolLM2's) decode every answer with a space
    before it, and lm-eval 0.4.13 compares it as it is with the target, which has none: each score would be 0.
    """
    if "aggregate_metric_list" in config:
        config["aggregate_metric_list"] = [
            {**metric, "filter_list": [_STRIP]} for metric in config["aggregate_metric_list"]
        ]
    elif not config.get("filter_list"):
        config["filter_list"] = [{"name": _STRIP, "filter": [{"function": _STRIP}, {"function": "take_first"}]}]


def _found(folder: Path) -> dict[str, Callable[..., Any]]:
    """The hub's names of the data sets that the folder has, with what reads them."""
    if not folder.is_dir():
        raise MeloraError(
            f"--data-folder {folder}: no such folder (paths are taken from the current one, {Path.cwd()})"
        )
    found: dict[str, Callable[..., Any]] = {
        hub: partial(reader, folder / name)
        for name, hub, reader in _LAYOUT
        if (folder / name / "test.parquet").is_file()
    }
    if not found:
        names = ", ".join(f"{name}/test.parquet" for name, _, _ in _LAYOUT)
        raise MeloraError(f"--data-folder {folder}: none of {names} is in it")
    return found


def _read(file: Path, columns: set[str]) -> list[dict[str, Any]]:
    if not file.is_file():
        raise MeloraError(f"--data-folder: no {file}, from which the shots are taken")
    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise MeloraError(f"--data-folder: {file} is not a readable Parquet file: {error}") from None
    missing = columns - (rows[0].keys() if rows else set())
    if missing:
        raise MeloraError(f"--data-folder: {file} has no rows with the columns {', '.join(sorted(missing))}")
    return rows


def _part(rows: list[dict[str, Any]], column: str, name: str | None, file: Path) -> list[dict[str, Any]]:
    """The rows of one subject or task."""
    part = [row for row in rows if row[column] == name]
    if not part:
        raise MeloraError(f"--data-folder: {file} has no rows with {column} {name!r}")
    return part


def read_mmlu(folder: Path, subject: str | None, **_: Any) -> datasets.DatasetDict:
    """One subject as the hub has it: question, choices, answer (0 to 3); the shots are the first rows of dev."""
    columns = {"subject", "question", "A", "B", "C", "D", "answer"}
    splits = {}
    for split in ("dev", "test"):
        file = folder / f"{split}.parquet"
        splits[split] = datasets.Dataset.from_list(
            [
                {"question": row["question"], "choices": [row[x] for x in "ABCD"], "answer": row["answer"]}
                for row in _part(_read(file, columns), "subject", subject, file)
            ]
        )
    return datasets.DatasetDict(splits)


def read_bbh(folder: Path, task: str | None, **_: Any) -> datasets.DatasetDict:
    """One task's questions; the shots stand in lm-eval's definition and are none of them."""
    file = folder / "test.parquet"
    rows = _part(_read(file, {"task", "input", "target"}), "task", task, file)
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})


def read_questions(folder: Path, name: str | None, **_: Any) -> datasets.DatasetDict:
    """GSM8K: question and answer, the shots from train."""
    splits = {split: _read(folder / f"{split}.parquet", {"question", "answer"}) for split in ("train", "test")}
    return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in splits.items()})


def read_humaneval(folder: Path, name: str | None, **_: Any) -> datasets.DatasetDict:
    """The 164 functions to complete."""
    rows = _read(folder / "test.parquet", {"task_id", "prompt", "test", "entry_point"})
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})


_LAYOUT = (
    ("mmlu", MMLU, read_mmlu),
    ("bbh", "SaylorTwift/bbh", read_bbh),
    ("gsm8k", "openai/gsm8k", read_questions),
    ("humaneval", "openai/openai_humaneval", read_humaneval),
)
