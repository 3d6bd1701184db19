import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from melora.compare.jobs import cells
from melora.compare.space import RATE
from melora.compare.state import note_failure
from melora.compare.study import load_study


@pytest.fixture
def study_file(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> Path:
    """One task, two methods, one rate and one seed: two runs."""
    data = {"train": str(tiny_data / "train.parquet"), "validation": str(tiny_data / "validation.parquet")}
    study = {
        "output": str(tmp_path / "study"),
        "reference": "lora",
        "seeds": [0],
        "learning_rates": [0.02],
        "base": {
            "model": {"name_or_path": str(tiny_model)},
            "data": {**data, "max_length": 16, "holdout": 24, "label": "rating"},
            "training": {"num_train_epochs": 1, "per_device_train_batch_size": 8, "use_cpu": True},
        },
        "tasks": {"rating": {"task": "regression"}},
        "methods": {
            "melora": {"adapter": {"method": "melora", "n": 4, "target_modules": ["query"]}},
            "lora": {"adapter": {"method": "lora", "r": 4, "target_modules": ["query"]}},
        },
    }
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    return file


def test_a_study_from_its_file_to_its_report(melora: Callable[..., Any], study_file: Path, tmp_path: Path) -> None:
    done = melora("compare", study_file, "--jobs", 2)
    assert done.code == 0, done.err
    assert "4 runs to make, 2 at a time" in done.out
    assert re.search(r"^\[4/4\] rating, .* on the untouched split; about 0:00 left$", done.out, re.M)
    assert "2 runs done\n" in done.out
    report = tmp_path / "study" / "report"
    assert f"report   {report / 'report.html'}" in done.out
    html = (report / "report.html").read_text(encoding="utf-8")
    assert "melora" in html
    assert {"report.html", "report.md", "results.parquet", "plots"} <= {file.name for file in report.iterdir()}

    again = melora("compare", study_file)
    assert again.code == 0
    assert "0 runs to make" in again.out
    assert "[" not in again.out

    only = melora("compare", study_file, "--report")
    assert only.code == 0
    assert "2 runs done" in only.out
    assert "to make" not in only.out


def test_a_dry_run_says_how_long_and_writes_nothing(
    melora: Callable[..., Any], study_file: Path, tmp_path: Path
) -> None:
    before = set(tmp_path.rglob("*"))
    done = melora("compare", study_file, "--dry-run", "seeds=[0,1]")
    assert done.code == 0, done.err
    assert re.search(r"^ rating +lora +2 +9 +[\d.]+ +0:\d\d", done.out, re.M)
    assert re.search(r"^they take up to \d MB of disk$", done.out, re.M)
    assert re.search(r"^4 runs to make: about 1:\d\d one after the other with \d+ threads each", done.out, re.M)
    assert "dry run: nothing was written" in done.out
    assert set(tmp_path.rglob("*")) == before


def test_a_dry_run_of_a_search_makes_no_storage(melora: Callable[..., Any], study_file: Path, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    done = melora("compare", study_file, "--dry-run", "search={sampler: tpe, trials: 4}", "learning_rates=[1e-3,1e-2]")
    assert done.code == 0, done.err
    assert "8 runs to make" in done.out
    assert done.err == ""
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "0"], "error: --jobs and --threads: must be 1 or more"),
        (["--ray", "--jobs", "2"], "error: --ray: Ray decides how many runs go at a time"),
        (["--gpus", "1"], "error: --cpus and --gpus: are for --ray"),
        (["--ray", "--cpus", "0"], "error: --cpus: must be 1 or more, got 0"),
        (["--ray", "127.0.0.1:1", "--dry-run"], "error: --ray 127.0.0.1:1: nothing answers there"),
        (["--ray", "127.0.0.1:1"], "error: --ray 127.0.0.1:1: nothing answers there"),
        (["reference=dora"], "error: reference: no method 'dora'"),
        (["methods.lora.adapter.r=4096"], "error: task rating, method lora: adapter.r: 4096 is above 64"),
        (
            ["search={sampler: tpe, storage: nonsense, trials: 2}", "learning_rates=[1e-3,1e-2]"],
            "error: search.storage:",
        ),
    ],
)
def test_bad_input_is_one_line_before_any_run(
    melora: Callable[..., Any], study_file: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = melora("compare", study_file, *arguments)
    assert done.code == 2
    assert done.err.startswith(message)
    assert done.err.count("\n") == 1
    assert [file for file in (tmp_path / "study").rglob("*") if file.is_file()] == []


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize("key", ["output", "report"])
def test_a_folder_that_is_a_file_is_told_in_one_line(
    melora: Callable[..., Any], study_file: Path, key: str, dry: list[str]
) -> None:
    done = melora("compare", study_file, f"{key}={study_file}", *dry)
    assert done.code == 2
    assert done.err == f"error: {key} {study_file}: {study_file} is no folder; choose another {key}\n"


def test_an_output_that_can_not_be_made(melora: Callable[..., Any], study_file: Path) -> None:
    done = melora("compare", study_file, "output=/proc/x", "report=/proc/x")
    assert done.code == 2
    assert re.fullmatch(r"error: output /proc/x: .*; choose another output\n", done.err)


def test_no_study(melora: Callable[..., Any], tmp_path: Path) -> None:
    done = melora("compare", tmp_path / "none.yaml")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: study {tmp_path / 'none.yaml'}: no such file")


def test_failed_runs_are_made_again_only_when_asked(
    melora: Callable[..., Any], study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    class Fails:
        parallel = 1

        def __init__(self, *args: object) -> None:
            pass

        def submit(self, job: Any, *, score: bool, priority: int) -> Any:
            from concurrent.futures import Future

            from melora.compare.state import note_failure

            made.append(job.method)
            note_failure(job, "training", "the loss is NaN")
            future: Future[str] = Future()
            future.set_result("failed")
            return future

        def halt(self) -> None:
            pass

        def close(self) -> None:
            pass

    monkeypatch.setattr("melora.cli.compare.LocalExecutor", Fails)
    done = melora("compare", study_file)
    assert done.code == 0
    assert "2 runs failed" in done.out
    assert "rates are chosen without the failed runs, which the report lists; --retry-failed" in done.out
    assert sorted(made) == ["lora", "melora"]
    melora("compare", study_file)
    assert len(made) == 2
    melora("compare", study_file, "--retry-failed")
    assert len(made) == 4


def test_only_the_studys_own_failures_are_forgotten_and_after_the_checks(
    melora: Callable[..., Any], study_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "study"
    output.mkdir()
    others = output / "0123456789abcdef.failed.json"
    others.write_text("{}")
    study = load_study(study_file)
    own = [cell.job({RATE: 0.02}, 0) for cell in cells(study)]
    for job in own:
        note_failure(job, "training", "the loss is NaN")
    assert melora("compare", study_file, "--retry-failed", "base.data.max_length=99999").code == 2
    assert len(list(output.glob("*.failed.json"))) == 3
    done = melora("compare", study_file, "--retry-failed")
    assert done.code == 0, done.err
    assert "4 runs to make" in done.out
    assert "2 runs done\n" in done.out
    assert list(output.glob("*.failed.json")) == [others]
