"""Scoring a finished run on benchmarks."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from ...errors import MeloraError
from ..evaluate import Restored
from ..halving import with_halving
from ..plain_methods import trained_in_place
from ..schema import nearest, one_line
from .local import local_tasks


@dataclass(frozen=True)
class Options:
    """How to score.

    Attributes:
        tasks: names of lm-eval's tasks or groups of them.
        data_folder: where rows are taken from, in place of the hub, as far as they are there.
        num_fewshot: shots in the prompt; None: as the task says (5 for MMLU).
        limit: the first rows of every task only; None: all.
        batch_size: rows at a time to start from; halved where memory does not suffice.
        baseline: score the base model without the adapter too.
        chat: put questions into the model's chat template.
        run_code: let HumanEval and its like run the code that the model writes.
    """

    tasks: tuple[str, ...]
    data_folder: Path | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 16
    baseline: bool = False
    chat: bool = False
    run_code: bool = False


def load_tasks(options: Options) -> list[Any]:
    """The tasks with their rows, before a model is loaded.

    Raises:
        MeloraError: an unknown task, one that runs code without leave, or rows that are not to be had.
    """
    for key in ("num_fewshot", "limit", "batch_size"):
        value = getattr(options, key)
        if value is not None and value < (0 if key == "num_fewshot" else 1):
            raise MeloraError(f"--{key.replace('_', '-')} {value}: must be {0 if key == 'num_fewshot' else 1} or more")
    manager = local_tasks(options.data_folder)
    built = []
    for name in options.tasks:
        if name not in manager.task_index:
            raise MeloraError(
                f"--tasks {name}: lm-eval has no such task ({nearest(name, manager.all_tasks)}); `lm_eval ls tasks` "
                "lists all"
            )
        built.extend(_build(manager, name))
    unsafe = [task.config.task for task in manager.load(built)["tasks"].values() if getattr(task, "UNSAFE_CODE", False)]
    if unsafe and not options.run_code:
        raise MeloraError(
            f"--tasks {', '.join(unsafe)}: runs the code that the model writes, with your rights; pass --run-code if "
            "you accept that (in a container, say)"
        )
    return built


def _build(manager: TaskManager, name: str) -> list[Any]:
    """One task or group; several of a tag."""
    try:
        built = manager._load_spec(name)
    except MeloraError:
        raise
    except Exception as error:  # whatever datasets, evaluate and their HTTP clients raise
        raise MeloraError(
            f"--tasks {name}: its data can't be had from the hub ({type(error).__name__}: {one_line(error)[:160]}); "
            "mmlu, bbh, bbh_fewshot, gsm8k and humaneval also run from local files: --data-folder FOLDER"
        ) from None
    return list(built) if isinstance(built, list) else [built]


def score(restored: Restored, options: Options, tasks: list[Any]) -> dict[str, Any]:
    """What benchmarks.json holds.

    Args:
        restored: the run.
        options: how.
        tasks: from `load_tasks`.

    Returns:
        versions and options, and under "scores" one row per task and metric: task, metric, value, stderr, shots, rows,
        and baseline and baseline_stderr where those were asked for.

    Raises:
        MeloraError: the baseline was asked for, and there is none below what was trained.
    """
    model = restored.with_adapter()
    if options.baseline and trained_in_place(model):
        raise MeloraError(
            f"--baseline: {restored.path} trained the base model's own weights, which its adapter does not leave "
            "behind; leave the option out, and score the base model by a run that trains an adapter"
        )
    if torch.cuda.is_available() and not restored.recipe.training.get("use_cpu"):
        model = model.to("cuda")
    rows = _rows(_run(model, restored.tokenizer, options, tasks))
    if options.baseline:
        with model.disable_adapter():
            before = {
                (row["task"], row["metric"]): row for row in _rows(_run(model, restored.tokenizer, options, tasks))
            }
        for row in rows:
            base = before[row["task"], row["metric"]]
            row["baseline"], row["baseline_stderr"] = base["value"], base["stderr"]
    return {
        "tasks": list(options.tasks),
        "limit": options.limit,
        "data_folder": None if options.data_folder is None else str(options.data_folder),
        "chat_template": options.chat,
        "lm_eval": _version(),
        "scores": rows,
    }


def _version() -> str:
    from importlib.metadata import version

    return version("lm_eval")


def _run(model: Any, tokenizer: Any, options: Options, tasks: list[Any]) -> dict[str, Any]:
    def run(batch: int) -> dict[str, Any]:
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=_window(model, tokenizer))
        result: dict[str, Any] = simple_evaluate(
            lm,
            tasks=list(tasks),
            task_manager=local_tasks(options.data_folder),  # without one lm-eval reads its thousands of files again
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            apply_chat_template=options.chat,
            confirm_run_unsafe_code=options.run_code,
            log_samples=False,
            bootstrap_iters=0 if options.limit == 1 else 1000,
        )
        return result

    with _quiet():
        return with_halving(run, options.batch_size)


def _window(model: Any, tokenizer: Any) -> int:
    limit = int(tokenizer.model_max_length)
    return min(limit, getattr(model.config, "max_position_embeddings", None) or limit)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's own notes; its warnings stay with --debug."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per metric, groups and their tasks alike, in lm-eval's order."""
    rows = []
    shots, counts = result.get("n-shot", {}), result.get("n-samples", {})
    for task, found in result["results"].items():
        for key, value in found.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            spread = found.get(f"{metric}_stderr,{kind}")
            rows.append(
                {
                    "task": task,
                    "metric": metric if kind == "none" else f"{metric} ({kind})",
                    "value": float(value),
                    "stderr": float(spread) if isinstance(spread, int | float) else None,
                    "shots": shots.get(task),
                    "rows": counts.get(task, {}).get("effective"),
                }
            )
    return rows
