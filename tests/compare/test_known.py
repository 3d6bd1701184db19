import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from melora.compare import worker
from melora.compare.jobs import Cell, Job
from melora.compare.known import Known
from melora.compare.record import Point, Record, Status
from melora.compare.space import RATE
from melora.compare.state import curve_lines, note_failure
from melora.compare.study import Study
from melora.training.folder import RESULTS, read_json, write_json


@pytest.fixture
def job(make_study: Callable[..., Study]) -> Job:
    return Cell(make_study(), "rating", "melora").job({RATE: 0.02}, 0)


@pytest.fixture
def scored(job: Job) -> Record:
    worker.make(job, score=True)
    return Known({}).record(job, chosen=True)


def test_the_record_of_a_scored_run(job: Job, scored: Record) -> None:
    results = read_json(job.folder / RESULTS)
    assert (scored.run, scored.task, scored.method, scored.peft_method) == (job.run, "rating", "melora", "melora")
    assert (scored.status, scored.reason, scored.chosen) == ("done", None, True)
    assert (scored.seed, scored.learning_rate, scored.settings) == (0, 0.02, {})
    assert (scored.metric, scored.greater_is_better) == ("pearson", True)
    assert scored.validation_score == results["metrics"]["pearson"]
    assert scored.test_score == scored.test_metrics["pearson"]
    assert scored.test_score != scored.validation_score
    assert (scored.train_rows, scored.validation_rows, scored.test_rows) == (72, 24, 32)
    assert (scored.n, scored.r, scored.equivalent_rank) == (4, 1, 4)
    assert (scored.parameters, scored.head_parameters) == (256, 33)
    assert scored.epochs == 2
    assert scored.steps == 18
    assert scored.peak_memory is not None
    assert scored.peak_memory > 1e8
    assert scored.step_seconds is not None
    assert scored.train_seconds is not None
    assert 0 < scored.step_seconds < scored.train_seconds
    assert [point.epoch for point in scored.points if point.validation_score is not None][:2] == [1.0, 2.0]
    assert sum(point.loss is not None for point in scored.points) >= 2
    assert "lora_alpha: 8" in scored.recipe


def test_ranks_of_other_methods(make_study: Callable[..., Study]) -> None:
    job = Cell(make_study(), "rating", "lora").job({RATE: 0.02}, 0)
    worker.make(job, score=False)
    record = Known({}).record(job, chosen=False)
    assert (record.n, record.r, record.equivalent_rank) == (None, 4, 4)
    assert record.test_score is None
    assert record.test_metrics == {}


def test_ranks_that_differ_are_none(job: Job, scored: Record) -> None:
    file = job.folder / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    write_json(file, {**config, "rank_pattern": {"query": 2}})
    record = Known({}).record(job, chosen=True)
    assert (record.n, record.r, record.equivalent_rank) == (None, None, None)


def test_runs_that_are_not_there(job: Job) -> None:
    missing = Known({}).record(job, chosen=False)
    assert (missing.status, missing.parameters, missing.points) == ("missing", None, ())
    assert Known({}).needs(job, score=False)
    note_failure(job, "training", "the loss is NaN")
    failed = Known({}).record(job, chosen=False)
    assert (failed.status, failed.reason) == ("failed", "the loss is NaN")
    assert not Known({}).needs(job, score=True)


def test_an_archive_stands_for_a_folder_that_is_gone(job: Job, scored: Record) -> None:
    shutil.rmtree(job.folder)
    archive = Known({job.run: replace(scored, chosen=False, method="by another name")})
    assert not archive.needs(job, score=True)
    assert archive.record(job, chosen=True) == scored
    assert archive.validation_score(job) == scored.validation_score
    assert Known({}).needs(job, score=False)


def test_the_lowest_loss_on_the_held_out_rows(job: Job, scored: Record) -> None:
    losses = [line["eval_loss"] for line in curve_lines(job.folder) if line.get("eval_loss") is not None]
    assert len(losses) > 1
    assert Known({}).validation_loss(job) == min(losses)
    points = [Point(1, 0.5, loss=0.1), Point(2, 1.0, validation_loss=math.nan), Point(4, 2.0, validation_loss=0.3)]
    shutil.rmtree(job.folder)
    assert Known({job.run: replace(scored, points=tuple(points))}).validation_loss(job) == 0.3
    assert Known({job.run: replace(scored, points=())}).validation_loss(job) == math.inf
    assert Known({}).validation_loss(job) == math.inf


def test_an_archive_without_its_score_is_made_again_for_it(job: Job, scored: Record) -> None:
    shutil.rmtree(job.folder)
    archive = Known({job.run: replace(scored, test_score=None, test_metrics={})})
    assert not archive.needs(job, score=False)
    assert archive.needs(job, score=True)


def test_a_folder_goes_before_the_archive(job: Job, scored: Record) -> None:
    archive = Known({job.run: replace(scored, validation_score=0.123)})
    assert archive.record(job, chosen=True) == scored


@pytest.mark.parametrize("status", ["missing", "failed"])
def test_an_archive_of_a_run_that_was_not_done(job: Job, scored: Record, status: Status, tmp_path: Path) -> None:
    shutil.rmtree(job.folder)
    archive = Known({job.run: replace(scored, status=status)})
    assert archive.needs(job, score=True) == (status == "missing")


def test_a_failed_scoring_is_shown_and_not_tried_for_ever(job: Job) -> None:
    worker.make(job, score=False)
    note_failure(job, "training", "no memory")
    known = Known()
    assert known.state(job) == "unscored"
    assert not known.needs(job, score=True)
    searched, chosen = (known.record(job, chosen=chosen) for chosen in (False, True))
    assert (searched.status, searched.reason) == ("done", None)
    assert (chosen.status, chosen.reason, chosen.test_score) == ("failed", "scoring: no memory", None)
    assert chosen.validation_score == searched.validation_score is not None

    again = replace(known, again=frozenset([job.run]))
    assert again.needs(job, score=True)
    assert not again.needs(job, score=False)

    shutil.rmtree(job.folder)
    job.folder.with_name(job.folder.name + ".failed.json").unlink()
    archive = Known({job.run: chosen})
    assert archive.state(job) == "unscored"
    assert archive.record(job, chosen=False).status == "done"
    assert archive.record(job, chosen=True) == chosen


def test_a_score_of_other_rows_does_not_count(job: Job, scored: Record) -> None:
    other = replace(job, score={"holdout": None, "max_validation_rows": 8})
    assert Known().state(job) == "scored"
    assert Known().state(other) == "trained"
    assert Known().record(other, chosen=True).test_score is None
    worker.make(other, score=True)
    assert Known().record(other, chosen=True).test_rows == 8
    assert scored.test_rows == 32
