"""One run in a process of its own, from outside: started, watched, and its end understood."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

from ..errors import MeloraError
from .jobs import Job
from .state import State, failure_file, note_failure, state_of
from .worker import DISK_IS_FULL, encode

_LAST_LINES = 5
_ASK_AGAIN = 10.0  # seconds: whether another process that makes the same run has ended
_TIME_TO_SAVE = 60.0  # seconds for a checkpoint after SIGTERM


class Halt(Exception):  # noqa: N818 - no error: the study was told to stop
    """The study stops; the run is unfinished and no failure."""


class Runs:
    """Makes runs, each in a child process, and can stop them all.

    Args:
        output: the study's folder; the children's output goes to logs/ in it.
        threads: of each child.

    Attributes:
        command: starts a child that reads its job as a line of its standard input.
    """

    command: Sequence[str] = (sys.executable, "-m", "melora.compare.worker")

    def __init__(self, output: Path, threads: int) -> None:
        self.output = output
        self.threads = threads
        self._children: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._halted = threading.Event()

    def make(self, job: Job, *, score: bool) -> State:
        """Make one run and wait for it; a failure is noted beside its folder.

        Args:
            job: the run.
            score: whether to score it on the untouched split as well.

        Returns:
            trained, scored, failed, or unscored: trained, and the scoring failed.

        Raises:
            Halt: the study was told to stop first.
            MeloraError: the disk is full.
        """
        while True:
            if self._wait_for_others(job) and (state := state_of(job)) in ("failed", "unscored"):
                return state  # the other process has just tried
            failure_file(job.folder).unlink(missing_ok=True)
            code, log = self._child(job, score)
            if code == 0:
                return "scored" if score else "trained"
            state = state_of(job)
            if failure_file(job.folder).is_file():
                return state
            if self._halted.is_set() or code in (143, -signal.SIGTERM):
                raise Halt
            if code == DISK_IS_FULL:  # the next run would end the same way
                raise MeloraError(
                    f"output {self.output}: its disk is full ({_last_lines(log)}); make room and run the same command "
                    "again: it goes on from here"
                )
            if state == "busy":
                continue
            note_failure(job, "killed" if code < 0 else "training", _reason(code, log))
            return state_of(job)

    def halt(self) -> None:
        """Stop all children: each gets SIGTERM and time to write a checkpoint. Later calls of `make` raise Halt."""
        self._halted.set()
        with self._lock:
            children = list(self._children)
        for child in children:
            child.terminate()
        end = time.monotonic() + _TIME_TO_SAVE
        for child in children:
            try:
                child.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()

    def _wait_for_others(self, job: Job) -> bool:
        """Whether another process made the run."""
        waited = False
        while state_of(job) == "busy":
            waited = True
            if self._halted.wait(_ASK_AGAIN):
                raise Halt
        if self._halted.is_set():
            raise Halt
        return waited

    def _child(self, job: Job, score: bool) -> tuple[int, Path]:
        log = self.output / "logs" / f"{job.run}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            child = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                text=True,
                env=environment(self.threads),
                start_new_session=True,  # a Ctrl-C on the terminal is the study's to handle
            )
        with self._lock:
            self._children.add(child)
        try:
            # A child that ended before it read its job says why by its exit code.
            with contextlib.suppress(BrokenPipeError), cast(IO[str], child.stdin) as pipe:
                pipe.write(encode(job, score=score) + "\n")
                pipe.flush()
                child.wait()  # the pipe stays open: its end would be the study's
            return child.wait(), log
        finally:
            with self._lock:
                self._children.discard(child)


def environment(threads: int) -> dict[str, str]:
    """Of a child: as this process's, with its number of threads."""
    fixed = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **fixed}


def _reason(code: int, log: Path) -> str:
    tail = _last_lines(log)
    if code < 0:
        name = signal.Signals(-code).name
        memory = "; the system may have run out of memory" if -code == signal.SIGKILL else ""
        return f"the process was killed by {name}{memory}; see {log}"
    return f"the process ended with exit code {code}: {tail or 'no output'}; see {log}"


def _last_lines(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-_LAST_LINES:])
