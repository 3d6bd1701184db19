"""Who makes the runs: this machine, one or a few at a time."""

import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

from .jobs import Job
from .process import Halt, Runs
from .state import State


class Executor(Protocol):
    """Makes runs at its own pace.

    Attributes:
        parallel: how many at a time, about.
    """

    parallel: int

    def submit(self, job: Job, *, score: bool, priority: int) -> "Future[State]":
        """Ask for a run; of those that wait, the lowest priority is made first. The future raises Halt after `halt`."""

    def halt(self) -> None:
        """Stop what runs, with a checkpoint, and forget what waits."""

    def close(self) -> None:
        """Give back what was taken; nothing may be under way."""


class LocalExecutor:
    """So many processes at a time on this machine.

    Args:
        output: the study's folder.
        jobs: processes at a time.
        threads: of each.
    """

    def __init__(self, output: Path, jobs: int, threads: int) -> None:
        self.parallel = jobs
        self._runs = Runs(output, threads)
        self._queue: queue.PriorityQueue[tuple[int, int, Callable[[], None] | None]] = queue.PriorityQueue()
        self._count = itertools.count()  # first come, first served among equals
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(jobs)]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job, *, score: bool, priority: int) -> "Future[State]":
        future: Future[State] = Future()

        def work() -> None:
            try:
                future.set_result(self._runs.make(job, score=score))
            except BaseException as error:
                future.set_exception(error)

        self._queue.put((priority, next(self._count), work))
        return future

    def halt(self) -> None:
        self._runs.halt()

    def close(self) -> None:
        for _ in self._threads:
            self._queue.put((2**62, next(self._count), None))
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (work := self._queue.get()[2]) is not None:
            work()


__all__ = ["Executor", "Halt", "LocalExecutor"]
