"""Score against trainable parameters, with the Pareto front: the main picture."""

from collections.abc import Sequence
from functools import partial

from ...statistics import Summary
from ...statistics_parameters import pareto_front
from ..drawing.axes import legend_height
from ..drawing.front import Dot, draw_front
from ..parts import Picture, Section
from ..study import Study
from ..text import amount, count, line, number
from .common import directions, mean, metrics, score_label, styles

_TEXT = (
    "Each method's mean score with its interval, against all parameters that are trained: the adapter's and the "
    "head's. A ring marks a method on the Pareto front (the dashed line): no other scores better with as few, or as "
    "well with fewer."
)


def front(study: Study) -> Section:
    """A picture over all tasks where there are several, then one for each task."""
    tasks = study.scored_tasks()
    pictures = [_picture(study, f"front-{study.slugs[task]}", task, _dots(study.summaries[task])) for task in tasks]
    if len(tasks) > 1:
        pictures.insert(0, _picture(study, "front", None, _mean_dots(study)))
    drawn = tuple(picture for picture in pictures if picture is not None)
    return Section(
        name="front",
        heading="Score against trainable parameters",
        paragraphs=(_TEXT,) if drawn else ("No run has a score on the untouched split yet.",),
        pictures=drawn,
    )


def _total(summary: Summary) -> int | None:
    return None if summary.parameters is None else summary.parameters + (summary.head_parameters or 0)


def _dots(summaries: Sequence[Summary]) -> list[Dot]:
    totals = [(summary, _total(summary)) for summary in summaries]
    return [
        Dot(summary.method, total, summary.interval)
        for summary, total in totals
        if summary.interval is not None and total is not None
    ]


def _mean_dots(study: Study) -> list[Dot]:
    found = []
    for row in study.overall:
        own = [summary for task in study.scored_tasks() if (summary := study.summary(task, row.method))]
        total = mean(map(_total, own))
        if row.interval is not None and total is not None:
            found.append(Dot(row.method, total, row.interval))
    return found


def _picture(study: Study, name: str, task: str | None, dots: list[Dot]) -> Picture | None:
    """None without dots.

    Args:
        task: None for the mean over tasks.
    """
    if not dots:
        return None
    if task is None:
        better, metric, title = directions(study) == {True}, "mean score", "mean over tasks"
        where = f"the mean over {amount(len(study.scored_tasks()), 'task', 'tasks')}"
        where += f" ({', '.join(metrics(study))})"
    else:
        told = study.summaries[task][0]
        better, metric, title, where = told.greater_is_better, told.metric, task, task
    best = pareto_front([(dot.parameters, dot.interval.mean) for dot in dots], greater_is_better=better)
    members = "; ".join(
        f"{dots[i].method}, {count(dots[i].parameters)} parameters, {number(dots[i].interval.mean)}" for i in best
    )
    return Picture(
        name=name,
        caption=f"Score against trainable parameters, {where}" + ("" if better else " (less is better)"),
        alt=line(f"{amount(len(dots), 'method', 'methods')}. On the Pareto front, by ascending parameters: {members}."),
        draw=partial(
            draw_front,
            title=title,
            dots=dots,
            front=best,
            styles=styles(study),
            ylabel=score_label(line(metric), "untouched split", greater_is_better=better),
        ),
        height=3.0 + legend_height([dot.method for dot in dots]),
    )
