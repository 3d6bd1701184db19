import dataclasses
import errno
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from melora.compare import worker
from melora.compare.jobs import Cell, Job
from melora.compare.known import Known
from melora.compare.space import RATE
from melora.compare.state import TEST, failure_of, note_failure, state_of
from melora.compare.study import Study, parse_study
from melora.errors import MeloraError
from melora.training.failures import TrainingError
from melora.training.folder import CHECKPOINTS, RESULTS, read_json


def _files(folder: Path) -> Mapping[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def job(make_study: Callable[..., Study]) -> Job:
    return Cell(make_study(), "rating", "melora").job({RATE: 0.02}, 0)


def test_a_job_goes_to_its_process_and_back(job: Job) -> None:
    line = worker.encode(job, score=True)
    assert "\n" not in line
    assert worker.decode(line) == (job, True)
    assert worker.decode(worker.encode(job, score=False)) == (job, False)


def test_a_run_is_scored_on_the_untouched_split(job: Job) -> None:
    assert state_of(job) == "open"
    worker.make(job, score=False)
    assert state_of(job) == "trained"
    results = read_json(job.folder / RESULTS)
    assert results["rows"] == {"train": 96 - 24, "validation": 24}
    assert not (job.folder / CHECKPOINTS).exists()

    worker.make(job, score=True)
    assert state_of(job) == "scored"
    test = read_json(job.folder / TEST)
    assert test["rows"] == 32
    assert test["data"].endswith("validation.parquet")
    assert test["metrics"]["pearson"] != results["metrics"]["pearson"]


def test_a_run_that_chooses_its_n(study_values: dict[str, Any]) -> None:
    method = study_values["methods"]["melora"]
    method["adapter"] = {"method": "melora", "n": "auto"}
    method["adapter_search"] = {"batches": 2, "budget": 400}
    job = Cell(parse_study(study_values), "rating", "melora").job({RATE: 0.02}, 0)
    worker.make(job, score=True)
    assert state_of(job) == "scored"
    chosen = read_json(job.folder / "allocation.json")
    record = Known({}).record(job, chosen=True)
    assert record.parameters == chosen["parameters"] <= 400
    rows = {(row["n"], row["r"]) for row in chosen["modules"]}
    assert (record.n, record.r) == (rows.pop() if len(rows) == 1 else (None, None))


def test_what_is_there_is_not_done_again(job: Job) -> None:
    worker.make(job, score=True)
    before = _files(job.folder)
    worker.make(job, score=True)
    assert _files(job.folder) == before


def test_an_interrupted_run_goes_on(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(worker, "train", lambda recipe, *, resume: asked.append(resume))
    worker.make(job, score=False)
    job.folder.with_name(job.folder.name + ".partial").mkdir(parents=True)
    worker.make(job, score=False)
    assert asked == [False, True]


def _run_main(job: Job, monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> int:
    def fail(job: Job, *, score: bool) -> None:
        if error is not None:
            raise error

    class Pipe:
        def readline(self) -> str:
            return worker.encode(job, score=False) + "\n"

    monkeypatch.setattr(worker, "make", fail)
    monkeypatch.setattr("sys.stdin", Pipe())
    monkeypatch.setattr(worker, "_end_with_parent", lambda: None)
    monkeypatch.setattr(worker, "_quieten", lambda: None)
    return worker.main()


@pytest.mark.parametrize(
    ("error", "kind"),
    [(MeloraError("no such\nfile"), "bad input"), (TrainingError("the loss is NaN"), "training")],
)
def test_a_failure_is_noted_with_its_recipe(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, kind: str
) -> None:
    assert _run_main(job, monkeypatch, error) == 1
    assert state_of(job) == "failed"
    failure = failure_of(job)
    assert failure.kind == kind
    assert failure.reason == " ".join(str(error).split())
    assert failure.reason in capsys.readouterr().err
    file = job.folder.with_name(job.folder.name + ".failed.json")
    assert json.loads(file.read_text())["recipe"] == dataclasses.asdict(job.recipe)


def test_an_unforeseen_failure_is_noted_and_its_traceback_shown(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        _run_main(job, monkeypatch, ZeroDivisionError("by zero"))
    assert failure_of(job).reason == "ZeroDivisionError: by zero"


def test_a_run_without_failure_ends_with_0(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run_main(job, monkeypatch, None) == 0
    assert state_of(job) == "open"


def test_a_damaged_note_says_what_to_do(job: Job) -> None:
    note_failure(job, "training", "the loss is NaN")
    file = job.folder.with_name(job.folder.name + ".failed.json")
    file.write_text("{}")
    with pytest.raises(MeloraError, match=re.escape(f"{file}: has no 'reason'; remove the file")):
        failure_of(job)


def test_a_full_disk_is_told_by_the_exit_code(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    wrapped = TrainingError("the checkpoint can't be written")
    wrapped.__cause__ = full
    library = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    for error in (full, wrapped, library):
        assert _run_main(job, monkeypatch, error) == worker.DISK_IS_FULL
        assert state_of(job) == "open"
