"""Running a study: for each method on each task a search, then the chosen setting with every seed."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from ..training.progress import clock
from .choose import best_setting
from .executor import Executor
from .grid import grid_jobs
from .jobs import Cell, Job, Setting, cells
from .known import Known
from .record import Record
from .study import Study
from .tpe import TpeSearch, open_storage


@dataclass
class Progress:
    """Counts runs as they end and says so.

    Args:
        total: runs that are still to be made, as far as is known.
        parallel: at a time.
        say: prints a line.
    """

    total: int
    parallel: int
    say: Callable[[str], None]
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    _lock: Any = field(default_factory=threading.Lock)

    def ended(self, job: Job, outcome: str) -> None:
        with self._lock:
            self.done += 1
            self.total = max(self.total, self.done)
            spent = time.monotonic() - self.began
            left = max(0, self.total - self.done) * spent / self.done
            self.say(f"[{self.done}/{self.total}] {job.text}: {outcome}; about {clock(left)} left")


class Searches:
    """Where a study's settings come from: its grid, or Optuna's storage.

    Args:
        study: the study.
        make: make that storage if there is none.
    """

    def __init__(self, study: Study, *, make: bool = True) -> None:
        self.study = study
        self._storage = open_storage(study, make=make) if study.search.sampler == "tpe" else None
        self._tpe: dict[tuple[str, str], TpeSearch] = {}
        if self._storage is not None:
            self._tpe = {(cell.task, cell.method): TpeSearch(cell, self._storage) for cell in cells(study)}

    def tpe(self, cell: Cell) -> TpeSearch | None:
        """The cell's Optuna search; None with a grid."""
        return self._tpe.get((cell.task, cell.method))

    def jobs(self, cell: Cell, known: Known) -> list[Job]:
        """The cell's search runs that are known by now."""
        search = self.tpe(cell)
        return grid_jobs(cell, known) if search is None else search.jobs()

    def is_over(self, cell: Cell, known: Known) -> bool:
        """Whether the cell's search has no run left to make, so that its choice stands."""
        search = self.tpe(cell)
        if search is not None and search.left():
            return False
        return not any(known.needs(job, score=False) for job in self.jobs(cell, known))

    def setting(self, cell: Cell, known: Known) -> Setting | None:
        """What the search chose; None while it is not over, and if no run of it succeeded."""
        return best_setting(self.jobs(cell, known), known) if self.is_over(cell, known) else None


def run_study(
    study: Study, searches: Searches, known: Known, executor: Executor, parallel: int, say: Callable[[str], None]
) -> None:
    """Make all runs of a study that are not there yet.

    Args:
        study: what to run.
        searches: its searches.
        known: what is there.
        executor: makes the runs.
        parallel: how many it makes at a time.
        say: prints a line for each run that ended.

    Raises:
        Halt: the executor was told to halt.
    """
    progress = Progress(count_left(study, searches, known), parallel, say)

    def ensure(jobs: Sequence[Job], *, score: bool, priority: int) -> None:
        wanted = [(job, known.needs(job, score=score)) for job in jobs]
        futures = {executor.submit(job, score=score, priority=priority): job for job, need in wanted if need}
        for future in as_completed(futures):
            future.result()
            progress.ended(futures[future], _outcome(known, futures[future]))

    def settle(place: int, cell: Cell) -> None:
        search = searches.tpe(cell)
        if search is None:
            while any(known.needs(job, score=False) for job in searches.jobs(cell, known)):  # the grid may grow
                ensure(searches.jobs(cell, known), score=False, priority=place)
        else:

            def score(job: Job) -> float | None:
                ensure([job], score=False, priority=place)
                return known.validation_score(job)

            search.go(score, parallel)
            # A trial that the storage holds may have no run here: its folder was removed, it failed and is retried, or
            # the process that made it was killed.
            ensure(searches.jobs(cell, known), score=False, priority=place)
        setting = searches.setting(cell, known)
        if setting is None:
            say(f"{cell.task}, {cell.method}: no run of the search succeeded, so nothing is scored")
            return
        ensure(cell.chosen(setting), score=True, priority=place)

    todo = list(enumerate(cells(study)))
    # A thread for each, since each waits for its own search; how much runs at a time is the executor's affair.
    with ThreadPoolExecutor(len(todo)) as threads:
        ends = [threads.submit(settle, place, cell) for place, cell in todo]
        try:
            for end in ends:
                end.result()
        except BaseException:
            executor.halt()
            raise


def count_left(study: Study, searches: Searches, known: Known) -> int:
    """How many runs are still to be made; a chosen run that is only to be scored is one too."""
    left = 0
    for cell in cells(study):
        search = searches.tpe(cell)
        left += sum(known.needs(job, score=False) for job in searches.jobs(cell, known))
        left += 0 if search is None else search.left()
        setting = searches.setting(cell, known)
        if setting is None:  # the first seed's run is the search's own, and is still to be scored
            left += len(study.seeds)
        else:
            left += sum(known.needs(job, score=True) for job in cell.chosen(setting))
    return left


def failed_jobs(study: Study, searches: Searches, known: Known) -> list[Job]:
    """The study's runs that failed, or whose scoring did."""
    found: dict[str, Job] = {}
    for cell in cells(study):
        setting = searches.setting(cell, known)
        for job in (*searches.jobs(cell, known), *([] if setting is None else cell.chosen(setting))):
            if known.state(job) in ("failed", "unscored"):
                found[job.run] = job
    return list(found.values())


def records(study: Study, searches: Searches, known: Known) -> list[Record]:
    """Every run of the study as a row, those included that are still to be made as far as they are known."""
    found: dict[str, Record] = {}
    for cell in cells(study):
        setting = searches.setting(cell, known)
        chosen = [] if setting is None else cell.chosen(setting)
        for job in chosen:
            found[job.run] = known.record(job, chosen=True)
        for job in searches.jobs(cell, known):
            found.setdefault(job.run, known.record(job, chosen=False))
    return _in_order(study, found.values())


def _in_order(study: Study, found: Iterable[Record]) -> list[Record]:
    tasks, methods = list(study.tasks), list(study.methods)
    return sorted(
        found, key=lambda row: (tasks.index(row.task), methods.index(row.method), row.learning_rate, row.seed)
    )


def _outcome(known: Known, job: Job) -> str:
    record = known.record(job, chosen=False)
    if record.status == "failed":
        return f"failed: {record.reason}"
    if record.test_score is not None:
        return f"{record.metric} {record.test_score:.4f} on the untouched split"
    score = "not a number" if record.validation_score is None else f"{record.validation_score:.4f}"
    return f"{record.metric} {score} on the held-out rows"
