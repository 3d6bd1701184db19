"""What is on disk of a study's runs: finished, failed, or neither."""

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ..errors import MeloraError
from ..training.folder import ADAPTER, RECIPE, RESULTS, read_json, write_json
from ..training.lock import FileLock
from .jobs import Job

logger = logging.getLogger(__name__)

TEST = "test.json"

State = Literal["scored", "trained", "unscored", "failed", "busy", "open"]


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
    """Where a run stands: scored on the untouched split, trained, trained and its scoring failed (unscored), failed,
    being made by another process, or open."""
    if (job.folder / RESULTS).is_file() and (job.folder / ADAPTER).is_dir():
        if _is_scored(job):
            return "scored"
        return "unscored" if failure_file(job.folder).is_file() else "trained"
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


def curve_lines(folder: Path) -> list[dict[str, Any]]:
    """The logged events of a run; a line that is no JSON, as a full disk leaves it, is left out with a warning."""
    file = folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            logger.warning("%s: line %d is damaged; the run's curve lacks it", file, number)
    return found


def _is_scored(job: Job) -> bool:
    """Whether there is a score, of the rows that the study names now."""
    file = job.folder / TEST
    # Runs of earlier versions do not say which rows; they are taken for the study's.
    return file.is_file() and read_json(file).get("score", job.score) == job.score
