"""How much the learning rate matters: validation score at each rate."""

import math
from collections.abc import Sequence
from functools import partial

from ...record import Record
from ..drawing.axes import legend_height
from ..drawing.lines import Sensitivity, draw_rates
from ..notes import note, search
from ..parts import Column, Picture, Section, Table
from ..study import Study
from ..text import ABSENT, line, number, rate
from .common import mean, score_label, styles

_TEXT = (
    "The score on the validation rows at each learning rate, mean over the seeds that were tried there; where other "
    "settings were varied too, the best of them. A ring marks the chosen rate, a cross at the bottom a rate whose runs "
    "all failed."
)


def rates(study: Study) -> Section:
    """A picture and a table for each task."""
    tasks = [task for task in study.tasks if study.summaries[task]]
    pictures = (_picture(study, task) for task in tasks)
    return Section(
        name="rates",
        heading="Learning rates",
        paragraphs=(_TEXT, *search(study)) if tasks else ("There is no run yet.",),
        pictures=tuple(picture for picture in pictures if picture is not None),
        tables=tuple(_table(study, task) for task in tasks),
    )


def _at(study: Study, task: str, method: str) -> dict[float, list[Record]]:
    """Learning rate -> all runs, ascending."""
    found: dict[float, list[Record]] = {}
    for record in study.records:
        if (record.task, record.method) == (task, method):
            found.setdefault(record.learning_rate, []).append(record)
    return found


def _score(records: Sequence[Record]) -> float | None:
    """Mean over seeds of the best of the other settings; None without a score, NaN where all are."""
    by_setting: dict[str, list[float]] = {}
    for record in records:
        if record.status == "done" and record.validation_score is not None:
            by_setting.setdefault(str(record.settings), []).append(record.validation_score)
    means = [value for scores in by_setting.values() if (value := mean(scores)) is not None]
    finite = [value for value in means if math.isfinite(value)]
    if not finite:
        return means[0] if means else None
    return max(finite) if records[0].greater_is_better else min(finite)


def _sensitivity(study: Study, task: str, method: str) -> Sensitivity:
    at = _at(study, task, method)
    scores = {value: _score(records) for value, records in at.items() if value > 0}
    failed = [
        record.learning_rate
        for record in study.records
        if (record.task, record.method) == (task, method) and record.status == "failed"
    ]
    summary = study.summary(task, method)
    return Sensitivity(
        scores=[(value, score) for value, score in scores.items() if score is not None and math.isfinite(score)],
        chosen=summary.learning_rate if summary else None,
        failed=[value for value, score in scores.items() if score is None and value in failed],
    )


def _picture(study: Study, task: str) -> Picture | None:
    lines = {summary.method: _sensitivity(study, task, summary.method) for summary in study.summaries[task]}
    lines = {method: own for method, own in lines.items() if own.scores or own.failed}
    if not any(own.scores for own in lines.values()):
        return None
    told = study.summaries[task][0]
    label = score_label(line(told.metric), "validation rows", greater_is_better=told.greater_is_better)
    chosen = "; ".join(f"{method} at {rate(own.chosen)}" for method, own in lines.items() if own.chosen is not None)
    return Picture(
        name=f"rates-{study.slugs[task]}",
        caption=f"Validation score against learning rate, {task}",
        alt=line(f"Chosen: {chosen or 'none yet'}. The values are in the table below."),
        draw=partial(draw_rates, title=task, lines=lines, styles=styles(study), ylabel=label),
        height=3.0 + legend_height(lines),
    )


def _table(study: Study, task: str) -> Table:
    methods = [summary.method for summary in study.summaries[task]]
    at = {method: _at(study, task, method) for method in methods}
    columns = sorted({value for runs in at.values() for value in runs})
    told = study.summaries[task][0]
    rows = []
    for method in methods:
        chosen = {record.learning_rate for record in study.runs(task, method)}
        cells = (_cell(at[method].get(value, []), chosen=value in chosen) for value in columns)
        rows.append((method, *cells))
    return Table(
        name=f"rates-{study.slugs[task]}-table",
        caption=f"{task}: {line(told.metric)} on the validation rows, by learning rate (number of seeds)",
        columns=(Column("Method"), *(Column(rate(value), "number") for value in columns)),
        rows=tuple(rows),
        note=note(study),
    )


def _cell(records: Sequence[Record], *, chosen: bool) -> str:
    """0.9123 (3), chosen, 1 failed."""
    if not records:
        return ABSENT
    told = []
    score = _score(records)
    if score is not None:
        seeds = {record.seed for record in records if record.validation_score is not None}
        told.append(f"{number(score)} ({len(seeds)})")
    if chosen:
        told.append("chosen")
    for status, word in (("failed", "failed"), ("missing", "not run yet")):
        found = sum(record.status == status for record in records)
        if found:
            told.append(f"{found} {word}")
    return ", ".join(told) or "no score"
