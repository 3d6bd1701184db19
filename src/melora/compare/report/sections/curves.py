"""Training curves of the chosen settings."""

import math
from collections.abc import Callable, Sequence
from functools import partial

from ...record import Point, Record
from ..drawing.axes import legend_height
from ..drawing.lines import Curve, Points, draw_curves
from ..parts import Picture, Section
from ..study import Study
from ..text import amount, line, number
from .common import mean, score_label, styles

_TEXT = "Each method at its chosen setting: the mean over seeds, and for scores each seed as a thin line."


def curves(study: Study) -> Section:
    """Validation score, then training loss, a picture each for every task."""
    of_tasks = [_pictures(study, task) for task in study.tasks if study.summaries[task]]
    pictures = tuple(picture for measure in zip(*of_tasks, strict=True) for picture in measure if picture is not None)
    return Section(
        name="curves",
        heading="Training curves",
        paragraphs=(_TEXT,) if pictures else ("No finished run at a chosen setting has logged a curve yet.",),
        pictures=pictures,
    )


def _pictures(study: Study, task: str) -> tuple[Picture | None, Picture | None]:
    """The score's and the loss's."""
    told = study.summaries[task][0]
    score = score_label(line(told.metric), "validation rows", greater_is_better=told.greater_is_better)
    runs = {summary.method: study.runs(task, summary.method) for summary in study.summaries[task]}
    slug = study.slugs[task]
    return (
        _picture(study, f"score-{slug}", task, score, "Validation score", _of(runs, _score, seeds=True)),
        _picture(study, f"loss-{slug}", task, "training loss", "Training loss", _of(runs, _loss, seeds=False)),
    )


def _loss(point: Point) -> float | None:
    return point.loss


def _score(point: Point) -> float | None:
    return point.validation_score


def _of(runs: dict[str, list[Record]], value_of: Callable[[Point], float | None], *, seeds: bool) -> dict[str, Curve]:
    """Method -> curve, of the methods whose runs logged this value."""
    found = {}
    for method, records in runs.items():
        lines = [own for record in records if (own := _line(record, value_of))]
        if lines:
            found[method] = Curve(_mean(lines), lines if seeds and len(lines) > 1 else ())
    return found


def _line(record: Record, value_of: Callable[[Point], float | None]) -> list[tuple[float, float]]:
    """Of one epoch the first value: a run ends with a score of the epoch that it kept, logged at the last one."""
    values: dict[float, float] = {}
    for point in record.points:
        value = value_of(point)
        if value is not None:
            values.setdefault(point.epoch, value)
    return [(epoch, value) for epoch, value in values.items() if math.isfinite(value)]


def _mean(lines: Sequence[Points]) -> list[tuple[float, float]]:
    """Where all seeds have a value: where one stopped early, the mean of the others would jump."""
    by_epoch: dict[float, list[float]] = {}
    for own in lines:
        for epoch, value in own:
            by_epoch.setdefault(epoch, []).append(value)
    means = ((epoch, mean(values)) for epoch, values in sorted(by_epoch.items()) if len(values) == len(lines))
    return [(epoch, value) for epoch, value in means if value is not None]


def _picture(
    study: Study, name: str, task: str, label: str, caption: str, of_methods: dict[str, Curve]
) -> Picture | None:
    if not of_methods:
        return None
    ends = "; ".join(f"{method} {number(curve.mean[-1][1])}" for method, curve in of_methods.items() if curve.mean)
    return Picture(
        name=name,
        caption=f"{caption} over epochs, {task}",
        alt=line(f"{amount(len(of_methods), 'method', 'methods')}. Mean over seeds at the end: {ends or 'none'}."),
        draw=partial(draw_curves, title=task, curves=of_methods, styles=styles(study), ylabel=label),
        height=3.0 + legend_height(of_methods),
    )
