"""Choosing a method's setting for a task: the best score on the held-out rows wins."""

import math
from collections.abc import Iterable

from ..training.tasks import task_class
from .jobs import Job, Setting
from .known import Known


def best_setting(jobs: Iterable[Job], known: Known) -> Setting | None:
    """The setting of the finished run with the best validation score.

    Of equal scores that with the lowest loss on those rows, then the lowest learning rate. Scores are equal where all
    runs answer with one class: Matthews' correlation is 0 then, and only the loss tells which of them learned.

    Args:
        jobs: a search's runs, of one task and method.
        known: says which are finished.

    Returns:
        None if no run is finished with a score that is a number.
    """
    best: tuple[float, float, float] | None = None
    setting: Setting | None = None
    for job in jobs:
        score = known.validation_score(job)
        if score is None or not math.isfinite(score):
            continue
        badness = -score if task_class(job.recipe.task).greater_is_better else score
        place = badness, known.validation_loss(job), job.rate
        if best is None or place < best:
            best, setting = place, job.setting
    return setting
