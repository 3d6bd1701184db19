"""What is known of a study's runs: from their folders, and where those are gone from an earlier results.parquet."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..training.folder import ENVIRONMENT, RESULTS, read_json
from ..training.tasks import task_class
from .jobs import Job
from .record import Point, Record
from .state import TEST, State, curve_lines, failure_of, state_of

_OF_RANK_R = ("MELORA", "LORA", "GRALORA")


@dataclass(frozen=True)
class Known:
    """What a study knows.

    Attributes:
        archive: records of an earlier report by run, which stand where a run's folder is gone.
        again: failed runs that are to be made, or scored, once more.
    """

    archive: Mapping[str, Record] = field(default_factory=dict)
    again: frozenset[str] = frozenset()

    def state(self, job: Job) -> State:
        """Where a run stands, as state_of, or as the archive says."""
        state, old = state_of(job), self.archive.get(job.run)
        if state != "open" or old is None:
            return state
        if old.status == "done":
            return "scored" if old.test_score is not None else "trained"
        if old.status == "failed":
            return "failed" if old.validation_score is None else "unscored"
        return "open"

    def needs(self, job: Job, *, score: bool) -> bool:
        """Whether a run is still to be made, or scored; a failed one is not made again."""
        state, again = self.state(job), job.run in self.again
        if state in ("open", "busy") or (again and state == "failed"):
            return True
        return score and (state == "trained" or (again and state == "unscored"))

    def record(self, job: Job, *, chosen: bool) -> Record:
        """A run as a row."""
        state = state_of(job)
        old = self.archive.get(job.run)
        if state == "open" and old is not None:
            # Names and settings are the study's own: another study's archive may have called the run otherwise.
            own = replace(old, **_named(job), chosen=chosen)
            # Its scoring failed: as a run of the search alone it counts.
            is_trained = old.status == "failed" and old.validation_score is not None
            return replace(own, status="done", reason=None) if is_trained and not chosen else own
        task = task_class(job.recipe.task)
        blank = Record(
            run=job.run,
            **_named(job),
            peft_method=str(job.recipe.adapter.get("method", "melora")),
            seed=job.seed,
            learning_rate=job.rate,
            metric=task.primary,
            greater_is_better=task.greater_is_better,
            chosen=chosen,
            recipe=job.recipe.to_yaml(),
        )
        if state in ("open", "busy"):
            return replace(blank, status="missing")
        if state == "failed":
            failure = failure_of(job)
            return replace(blank, status="failed", reason=failure.reason, date=failure.date)
        measured = replace(blank, **_measured(job, task.primary, scored=state == "scored"))
        if state == "unscored" and chosen:
            return replace(measured, status="failed", reason=f"scoring: {failure_of(job).reason}")
        return measured

    def validation_score(self, job: Job) -> float | None:
        """The metric on the held-out rows of the epoch that was kept; None unless the run is finished."""
        return self.record(job, chosen=False).validation_score

    def validation_loss(self, job: Job) -> float:
        """The lowest loss on the held-out rows after any epoch; infinite where none is known.

        Not that of the epoch that was kept: where the metric stays the same, that is the first.
        """
        losses = (point.validation_loss for point in self.record(job, chosen=False).points)
        return min((loss for loss in losses if loss is not None and math.isfinite(loss)), default=math.inf)


def load_archive(report: Path) -> dict[str, Record]:
    """The records of an earlier report by run; none without one.

    Raises:
        MeloraError: its results.parquet can't be read.
    """
    from .report import read_records  # with pyarrow

    file = report / "results.parquet"
    return {record.run: record for record in read_records(file)} if file.is_file() else {}


def _named(job: Job) -> dict[str, Any]:
    others = {key: value for key, value in job.setting.items() if key != "training.learning_rate"}
    return {"task": job.task, "method": job.method, "settings": others}


def _measured(job: Job, primary: str, *, scored: bool) -> dict[str, Any]:
    results, environment = read_json(job.folder / RESULTS), read_json(job.folder / ENVIRONMENT)
    test = read_json(job.folder / TEST) if scored else None
    n, r, rank = _ranks(job)
    counts = results["parameters"]
    return {
        "validation_score": _score(results, primary),
        "test_score": None if test is None else _score(test, primary),
        "test_metrics": {} if test is None else {key: float(value) for key, value in test["metrics"].items()},
        "test_rows": None if test is None else test["rows"],
        "train_rows": results["rows"]["train"],
        "validation_rows": results["rows"]["validation"],
        "parameters": counts["adapter"],
        "head_parameters": counts["head"],
        "base_parameters": counts["base"],
        "n": n,
        "r": r,
        "equivalent_rank": rank,
        "epochs": results["epochs"],
        "best_epoch": results["best_epoch"],
        "steps": results["steps"],
        "train_seconds": results["train_seconds"],
        "step_seconds": results["step_seconds"],
        "peak_memory": results["peak_memory"],
        "machine": environment["machine"],
        "threads": environment["threads"],
        "date": environment["time"],
        "commit": environment["git_commit"],
        "points": tuple(_points(job, primary)),
    }


def _score(values: Mapping[str, Any], primary: str) -> float | None:
    value = values["metrics"].get(primary)
    return None if value is None or not math.isfinite(value) else float(value)


def _ranks(job: Job) -> tuple[int | None, int | None, int | None]:
    """n, r and the equivalent rank of all adapted modules; None where they have none or differ.

    What other methods call r is no rank of their update: LoKr's is a product of ranks, VeRA's random factors have it.
    """
    config = read_json(job.folder / "adapter" / "adapter_config.json")
    r = config.get("r") or None
    patterns = any(config.get(key) for key in ("rank_pattern", "n_pattern"))
    if r is None or patterns or not isinstance(r, int):
        return None, None, None
    n = config.get("n") if config.get("peft_type") == "MELORA" else None
    return n, r, (n or 1) * r if config.get("peft_type") in _OF_RANK_R else None


def _points(job: Job, primary: str) -> list[Point]:
    points = []
    for line in curve_lines(job.folder):
        step, epoch = int(line["step"]), float(line.get("epoch") or 0.0)
        if line.get("loss") is not None:
            points.append(Point(step, epoch, loss=float(line["loss"])))
        elif line.get("eval_loss") is not None:
            score = line.get(f"eval_{primary}")
            points.append(Point(step, epoch, validation_loss=line["eval_loss"], validation_score=score))
    return points
