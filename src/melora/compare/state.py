"""What is on disk of a study's runs: finished, failed, or neither."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ..errors import MeloraError
from ..training.folder import ADAPTER, RECIPE, RESULTS, read_json, write_json
from ..training.lock import FileLock
from .jobs import Job

TEST = "test.json"

State = Literal["scored", "trained", "failed", "busy", "open"]


@dataclass(frozen=True)
class Failure:
    """Why a run is not there.

    Attributes:
        reason: one line.
        kind: bad input, training, or killed.
        date: ISO 8601.
    """

    reason: str
    kind: str
    date: str


def failure_file(folder: Path) -> Path:
    return folder.with_name(folder.name + ".failed.json")


def state_of(job: Job) -> State:
    """Where a run stands: scored on the untouched split, trained, failed, being made by another process, or open."""
    if (job.folder / RESULTS).is_file() and (job.folder / ADAPTER).is_dir():
        return "scored" if (job.folder / TEST).is_file() else "trained"
    if FileLock(job.folder.with_name(job.folder.name + ".partial") / RECIPE).is_taken():
        return "busy"
    return "failed" if failure_file(job.folder).is_file() else "open"


def note_failure(job: Job, kind: str, reason: str) -> None:
    """Keep why a run failed, beside where it would be, with its recipe."""
    file = failure_file(job.folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(file, {"reason": reason, "kind": kind, "date": now, "recipe": job.recipe.to_dict()})


def failure_of(job: Job) -> Failure:
    """Why it failed.

    Raises:
        MeloraError: the note is damaged.
    """
    file = failure_file(job.folder)
    values = read_json(file)
    try:
        return Failure(str(values["reason"]), str(values["kind"]), str(values["date"]))
    except KeyError as error:
        raise MeloraError(f"{file}: has no {error}; remove the file, and the run is made again") from None


def validation_score(job: Job) -> float | None:
    """The metric that chose the epoch, on the held-out rows; None unless the run is finished."""
    if not (job.folder / RESULTS).is_file():
        return None
    results = read_json(job.folder / RESULTS)
    value = results["metrics"].get(results["primary"], results.get("validation_loss"))
    return float(value) if value is not None else None


def curve_lines(folder: Path) -> list[dict[str, Any]]:
    """The logged events of a run, damaged lines left out."""
    file = folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines]
