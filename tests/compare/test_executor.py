import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from melora.compare.executor import LocalExecutor
from melora.compare.jobs import Cell, Job
from melora.compare.process import Halt, Runs
from melora.compare.space import RATE
from melora.compare.study import Study


@pytest.fixture
def jobs(make_study: Callable[..., Study]) -> list[Job]:
    cell = Cell(make_study(), "rating", "melora")
    return [cell.job({RATE: 0.02}, seed) for seed in range(4)]


class Gate(threading.Semaphore):
    """Runs wait here until they are let through one by one; `order` has their seeds as they started."""

    def __init__(self) -> None:
        super().__init__(0)
        self.order: list[int] = []

    def await_runs(self, count: int) -> None:
        """Return when so many runs have started."""
        deadline = time.monotonic() + 30
        while len(self.order) < count:
            assert time.monotonic() < deadline, f"{len(self.order)} of {count} runs started"
            time.sleep(0.001)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()

    def make(self: Runs, job: Job, *, score: bool) -> str:
        if self._halted.is_set():
            raise Halt
        gate.order.append(job.seed)
        gate.acquire()
        if job.seed == 3:
            raise OSError("no space left")
        return "trained"

    monkeypatch.setattr(Runs, "make", make)
    yield gate
    gate.release(100)


def test_the_lowest_priority_goes_first_and_equals_in_order(jobs: list[Job], gate: Gate, tmp_path: Path) -> None:
    executor = LocalExecutor(tmp_path, jobs=1, threads=1)
    futures = [executor.submit(jobs[0], score=False, priority=9)]
    gate.await_runs(1)
    futures += [executor.submit(jobs[i], score=False, priority=p) for i, p in ((1, 5), (0, 2), (2, 5))]
    gate.release(4)
    assert [future.result(30) for future in futures] == ["trained"] * 4
    assert gate.order == [0, 0, 1, 2]
    executor.close()


def test_so_many_at_a_time(jobs: list[Job], gate: Gate, tmp_path: Path) -> None:
    executor = LocalExecutor(tmp_path, jobs=2, threads=1)
    futures = [executor.submit(job, score=False, priority=0) for job in jobs[:3]]
    gate.await_runs(2)
    assert sorted(gate.order) == [0, 1]
    gate.release(3)
    assert [future.result(30) for future in futures] == ["trained"] * 3
    executor.close()


def test_what_goes_wrong_in_a_run_reaches_who_asked(jobs: list[Job], gate: Gate, tmp_path: Path) -> None:
    executor = LocalExecutor(tmp_path, jobs=1, threads=1)
    future = executor.submit(jobs[3], score=False, priority=0)
    gate.release()
    with pytest.raises(OSError, match="no space left"):
        future.result(30)
    executor.close()


def test_after_halt_what_waits_is_not_made(jobs: list[Job], gate: Gate, tmp_path: Path) -> None:
    executor = LocalExecutor(tmp_path, jobs=1, threads=1)
    first = executor.submit(jobs[0], score=False, priority=0)
    second = executor.submit(jobs[1], score=False, priority=0)
    gate.await_runs(1)
    executor.halt()
    gate.release()
    assert first.result(30) == "trained"
    with pytest.raises(Halt):
        second.result(30)
    executor.close()
