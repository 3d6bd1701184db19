import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from melora import MeloraError
from melora.training.benchmarks.humaneval import passes
from melora.training.benchmarks.of_run import benchmark
from melora.training.benchmarks.score import Options, load_tasks
from melora.training.evaluate import restore

ANATOMY = "The following are multiple choice questions (with answers) about anatomy.\n\n"
SHARED = Path(__file__).parents[4] / "shared" / "data"


def prompts(options: Options) -> list[tuple[str, str]]:
    """(context, continuation) of every request of the one task."""
    [task] = load_tasks(options)
    if options.num_fewshot is not None:
        task.set_config("num_fewshot", options.num_fewshot)
    task.build_all_requests(limit=options.limit, rank=0, world_size=1)
    return [instance.args for instance in task.instances]


def mmlu_question(i: int) -> str:
    return f"Question {i}?\nA. a{i}\nB. b{i}\nC. c{i}\nD. d{i}\nAnswer:"


def test_the_prompt_of_mmlu_is_the_official_one_with_shots_from_dev(data_folder: Path) -> None:
    options = Options(("mmlu_anatomy",), data_folder, num_fewshot=2, limit=1)
    shots = f"{mmlu_question(0)} A\n\n{mmlu_question(1)} B\n\n"
    expected = f"{ANATOMY}{shots}{mmlu_question(3)}"
    assert prompts(options) == [(expected, f" {letter}") for letter in "ABCD"]


def test_mmlu_has_five_shots_unless_told_otherwise(data_folder: Path) -> None:
    [task] = load_tasks(Options(("mmlu_anatomy",), data_folder))
    assert task.config.num_fewshot == 5


def test_the_prompt_of_bbh_has_the_official_shots(data_folder: Path) -> None:
    [(context, _), *_] = prompts(Options(("bbh_fewshot_boolean_expressions",), data_folder))
    assert context.startswith(
        "Evaluate the result of a random Boolean expression.\n\nQ: not ( ( not not True ) ) is\nA:"
    )
    assert context.endswith("\n\nQ: True and True is\nA:")
    assert context.count("Q: ") == 4


@pytest.fixture
def run(llama_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_run, tmp_path / "run"))


def test_accuracy_is_that_of_an_own_computation(run: Path, data_folder: Path) -> None:
    options = Options(("mmlu_anatomy",), data_folder, num_fewshot=1, baseline=True)
    requests = prompts(options)
    restored = restore(run)
    model, tokenizer = restored.with_adapter(), restored.tokenizer

    def accuracy() -> float:
        right = 0
        for question in range(12):
            sums = []
            for context, answer in requests[4 * question : 4 * question + 4]:
                start, whole = (
                    tokenizer(text, add_special_tokens=False).input_ids for text in (context, context + answer)
                )
                with torch.no_grad():
                    logs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
                sums.append(sum(float(logs[i - 1, whole[i]]) for i in range(len(start), len(whole))))
            right += sums.index(max(sums)) == (question + 3) % 4
        return right / 12

    with_adapter = accuracy()
    with model.disable_adapter():
        without = accuracy()
    [row] = benchmark(run, options)["scores"]
    assert (row["task"], row["metric"], row["shots"], row["rows"]) == ("mmlu_anatomy", "acc", 1, 12)
    assert (row["value"], row["baseline"]) == pytest.approx((with_adapter, without))
    assert row["stderr"] == pytest.approx((with_adapter * (1 - with_adapter) / 11) ** 0.5)


def test_scores_go_into_the_run_and_its_card_once(run: Path, data_folder: Path) -> None:
    before = ModelCard.load(run / "adapter" / "README.md")
    tasks = ("mmlu_anatomy", "bbh_fewshot_boolean_expressions")
    for limit in (2, 3):
        scored = benchmark(run, Options(tasks, data_folder, num_fewshot=1, limit=limit))
    assert json.loads((run / "benchmarks.json").read_text()) == scored
    assert [(row["task"], row["rows"]) for row in scored["scores"]] == [(task, 3) for task in tasks]
    text = (run / "adapter" / "README.md").read_text()
    assert text.count("## Benchmarks") == text.count("| mmlu_anatomy | acc | 1 | 3 |") == 1
    assert "the first 3 rows of each task only" in text
    after = ModelCard(text)
    assert after.text.startswith(before.text.rstrip())
    names = [result.dataset_name for result in after.data.eval_results]
    assert names == [*(result.dataset_name for result in before.data.eval_results), *tasks]
    yaml.safe_load(text.split("---\n")[1])


def test_answers_after_a_space_count_in_bbh_fewshot(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte-level tokenizers decode "A: True" to " True": compared as they are, lm-eval's scores would all be 0."""
    from lm_eval.models.huggingface import HFLM

    shots = Path(lm_eval.tasks.__file__).parent / "bbh" / "fewshot"
    tasks = [yaml.load(file.read_text(), yaml.BaseLoader)["dataset_name"] for file in shots.glob("[!_]*.yaml")]
    rows = [{"task": task, "input": "1 is 1 is", "target": target} for task in tasks for target in ("True", "False")]
    (tmp_path / "bbh").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "bbh" / "test.parquet")
    monkeypatch.setattr(HFLM, "generate_until", lambda self, requests, **_: [" True"] * len(requests))
    scores = benchmark(run, Options(("bbh_fewshot",), tmp_path, num_fewshot=1))["scores"]
    assert len(scores) == len(tasks) + 1 == 28
    assert {row["metric"] for row in scores} == {"exact_match (remove_whitespace)"}
    assert {row["value"] for row in scores} == {0.5}


def test_memory_errors_halve_the_batch(
    run: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lm_eval.models.huggingface import HFLM

    forward, seen = HFLM._model_call, []

    def small_memory(self: Any, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(inputs))
        if len(inputs) > 3:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")
        return forward(self, inputs, *args, **kwargs)

    options = Options(("mmlu_anatomy",), data_folder, num_fewshot=1, batch_size=8)
    expected = benchmark(run, options)["scores"]
    monkeypatch.setattr(HFLM, "_model_call", small_memory)
    assert benchmark(run, options)["scores"] == expected
    assert seen[:3] == [8, 4, 2]
    assert "trying again with 2 rows at a time" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("mmul",)}, "lm-eval has no such task"),
        ({"tasks": ("humaneval",)}, "pass --run-code if you accept that"),
        ({"tasks": ("gsm8k",)}, "its data can't be had from the hub"),
        ({"tasks": ("bbh_fewshot_navigate",)}, "no rows with task 'navigate'"),
        ({"data_folder": Path("nowhere")}, "no such folder"),
        ({"data_folder": Path(__file__).parent}, "none of mmlu/test.parquet"),
        ({"limit": 0}, "--limit 0: must be 1 or more"),
        ({"num_fewshot": -1}, "--num-fewshot -1: must be 0 or more"),
    ],
)
def test_bad_options_are_errors_before_a_model_is_loaded(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(MeloraError, match=message):
        load_tasks(replace(Options(("mmlu_anatomy",), data_folder), **change))


@pytest.mark.parametrize(
    ("program", "passed"), [("assert 1 == 1", True), ("assert 1 == 2", False), ("raise SystemExit(3)", False)]
)
def test_programs_pass_if_they_end_well(program: str, passed: bool) -> None:
    assert passes(program) is passed


def test_humaneval_runs_what_the_model_wrote(run: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.models.huggingface import HFLM

    options = Options(("humaneval",), data_folder, run_code=True)
    for body, expected in (("    return x + 1\n", 1.0), ("    return x\n", 0.0)):
        monkeypatch.setattr(HFLM, "generate_until", lambda self, requests, body=body, **_: [body for _ in requests])
        [row] = benchmark(run, options)["scores"]
        assert (row["metric"], row["value"]) == ("pass@1", expected)


@pytest.mark.skipif(not (SHARED / "bbh").is_dir(), reason=f"needs BBH in {SHARED}")
def test_no_official_shot_of_bbh_is_among_the_rows() -> None:
    rows = pyarrow.parquet.read_table(SHARED / "bbh" / "test.parquet").to_pylist()
    asked = {(row["task"], row["input"].strip()) for row in rows}
    for name in ("bbh", "bbh_fewshot"):
        [group] = load_tasks(Options((name,), SHARED))
        tasks = group.get_all_tasks()
        assert len(tasks) == 27
        shots = [(task.config.dataset_name, shot["input"].strip()) for task in tasks for shot in task.fewshot_docs()]
        assert len(shots) == 81
        assert not asked & set(shots)
