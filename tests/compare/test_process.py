import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from melora.compare.jobs import Cell, Job
from melora.compare.process import Halt, Runs
from melora.compare.space import RATE
from melora.compare.state import failure_of, note_failure, state_of
from melora.compare.study import Study
from melora.compare.worker import DISK_IS_FULL
from melora.errors import MeloraError


@pytest.fixture
def job(make_study: Callable[..., Study]) -> Job:
    return Cell(make_study(), "rating", "melora").job({RATE: 0.02}, 0)


@pytest.fixture
def runs(tmp_path: Path) -> Callable[[str], Runs]:
    """Runs whose child is a few lines of Python."""

    def build(code: str) -> Runs:
        made = Runs(tmp_path / "study", threads=1)
        made.command = [sys.executable, "-c", textwrap.dedent(code)]
        return made

    return build


def test_a_child_gets_its_job_and_its_threads(runs: Callable[[str], Runs], job: Job, tmp_path: Path) -> None:
    child = runs(
        f"""
        import os, sys
        open({str(tmp_path / "told")!r}, "w").write(sys.stdin.readline() + os.environ["OMP_NUM_THREADS"])
        """
    )
    assert child.make(job, score=True) == "scored"
    line, threads = (tmp_path / "told").read_text().splitlines()
    assert job.run in line
    assert '"score_it": true' in line
    assert threads == "1"


def test_a_killed_child_is_a_failure_with_a_reason(runs: Callable[[str], Runs], job: Job) -> None:
    assert runs("import os; os.kill(os.getpid(), 9)").make(job, score=False) == "failed"
    reason = failure_of(job).reason
    assert reason.startswith("the process was killed by SIGKILL; the system may have run out of memory; see ")
    assert failure_of(job).kind == "killed"


def test_a_child_that_ends_early_is_a_failure_with_its_last_lines(runs: Callable[[str], Runs], job: Job) -> None:
    assert runs("print('one'); print('two'); raise SystemExit(3)").make(job, score=False) == "failed"
    assert re.match(r"the process ended with exit code 3: one \| two; see .*\.log", failure_of(job).reason)


def test_a_failure_of_another_time_is_forgotten(runs: Callable[[str], Runs], job: Job) -> None:
    runs("raise SystemExit(3)").make(job, score=False)
    assert runs("pass").make(job, score=False) == "trained"
    assert not job.folder.with_name(job.folder.name + ".failed.json").exists()


def test_halt_asks_the_child_to_save_and_is_no_failure(runs: Callable[[str], Runs], job: Job, tmp_path: Path) -> None:
    started = tmp_path / "started"
    made = runs(
        f"""
        import signal, sys, time
        def save(number, frame):
            open({str(tmp_path / "saved")!r}, "w").close()
            sys.exit(143)
        signal.signal(signal.SIGTERM, save)
        open({str(started)!r}, "w").close()
        time.sleep(60)
        """
    )
    ends: list[BaseException] = []

    def go() -> None:
        try:
            made.make(job, score=False)
        except Halt as halt:
            ends.append(halt)

    thread = threading.Thread(target=go)
    thread.start()
    while not started.exists():
        time.sleep(0.01)
    made.halt()
    thread.join(30)
    assert len(ends) == 1
    assert (tmp_path / "saved").exists()
    assert not job.folder.with_name(job.folder.name + ".failed.json").exists()
    with pytest.raises(Halt):
        made.make(job, score=False)


def test_a_run_of_another_process_is_waited_for(
    runs: Callable[[str], Runs], job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter(["busy", "busy", "open", "open"])
    monkeypatch.setattr("melora.compare.process.state_of", lambda job: next(states))
    monkeypatch.setattr("melora.compare.process._ASK_AGAIN", 0.01)
    assert runs("pass").make(job, score=False) == "trained"
    assert next(states, None) is None


def test_a_worker_ends_when_its_study_does() -> None:
    """Killed with -9, a study leaves no process behind."""
    code = "from melora.compare.worker import _end_with_parent; _end_with_parent()"
    worker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait(60) == -signal.SIGTERM


def test_a_full_disk_ends_the_study_and_is_no_runs_failure(runs: Callable[[str], Runs], job: Job) -> None:
    child = runs(f"print('No space left on device'); raise SystemExit({DISK_IS_FULL})")
    with pytest.raises(MeloraError, match=r"study: its disk is full \(No space left on device\); make room and run"):
        child.make(job, score=False)
    assert state_of(job) == "open"


def test_what_another_process_failed_at_is_not_tried_at_once(
    runs: Callable[[str], Runs], job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter(["busy", "failed"])
    monkeypatch.setattr("melora.compare.process._ASK_AGAIN", 0.01)
    monkeypatch.setattr("melora.compare.process.state_of", lambda job: next(states, "failed"))
    made = runs("raise AssertionError('made again')")
    note_failure(job, "training", "the loss is NaN")
    assert made.make(job, score=False) == "failed"
    assert failure_of(job).reason == "the loss is NaN"
