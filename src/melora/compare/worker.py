"""The process that makes one run of a study: `python -m melora.compare.worker`, its job as one JSON line on stdin.

A process of its own, so that a run that runs out of memory takes nothing with it, its peak memory is its own, and its
number of threads is set before torch starts. It ends when the study does: stdin is held open by the study, and its end
is taken as SIGTERM, at which training writes a checkpoint.
"""

import errno
import json
import os
import shutil
import signal
import sys
import threading
import warnings
from dataclasses import asdict

from ..errors import MeloraError
from ..training.evaluate import evaluate
from ..training.failures import TrainingError
from ..training.folder import CHECKPOINTS, write_json
from ..training.recipe import parse_recipe
from ..training.run import train
from ..training.schema import one_line
from .jobs import Job
from .state import TEST, note_failure, state_of

DISK_IS_FULL = 75  # sysexits.h: a passing failure, to be tried again
_FULL = (errno.ENOSPC, errno.EDQUOT)


def encode(job: Job, *, score: bool) -> str:
    """A job as one line of JSON.

    Args:
        job: the run.
        score: whether to score it on the untouched split as well.
    """
    return json.dumps({**asdict(job), "score_it": score})


def decode(line: str) -> tuple[Job, bool]:
    """The job and whether to score it."""
    values = json.loads(line)
    score = values.pop("score_it")
    recipe = parse_recipe(values.pop("recipe"))
    return Job(**values, recipe=recipe), score


def make(job: Job, *, score: bool) -> None:
    """Train a run, or go on with an interrupted one, and score it once; what is there already is not done again.

    Raises:
        MeloraError: bad input.
        TrainingError: training went wrong.
        Stopped: SIGTERM; the run goes on from its checkpoint another time.
    """
    state = state_of(job)
    if state not in ("trained", "unscored", "scored"):
        partial = job.folder.with_name(job.folder.name + ".partial")
        train(job.recipe, resume=partial.exists())
        shutil.rmtree(job.folder / CHECKPOINTS, ignore_errors=True)  # the adapter that was kept stands beside them
    if score and state != "scored":
        overrides = [f"data.{key}={json.dumps(value)}" for key, value in job.score.items()]
        write_json(job.folder / TEST, {**evaluate(job.folder, overrides), "score": job.score})


def main() -> int:
    """Returns 0 for a finished run, 1 for one whose failure was noted, DISK_IS_FULL where no run could go on."""
    job, score = decode(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _quieten()
    try:
        make(job, score=score)
    except Exception as error:
        if _is_disk_full(error):
            print(one_line(error), file=sys.stderr)
            return DISK_IS_FULL
        return _note(job, error)
    return 0


def _note(job: Job, error: Exception) -> int:
    if isinstance(error, MeloraError | TrainingError):
        if state_of(job) != "busy":
            note_failure(job, "bad input" if isinstance(error, MeloraError) else "training", one_line(error))
        print(one_line(error), file=sys.stderr)
        return 1
    note_failure(job, "training", f"{type(error).__name__}: {one_line(error)}")
    raise error


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        # safetensors and pyarrow raise errors of their own, with the system's words.
        if getattr(error, "errno", None) in _FULL or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _end_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


def _quieten() -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    sys.exit(main())
