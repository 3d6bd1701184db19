"""Methods of the same size beside each other: the score at equal parameters, pair by pair."""

from collections.abc import Sequence

from ...statistics import Summary
from ...statistics_interval import paired_difference
from ...statistics_parameters import sizes
from ..notes import TIE, note
from ..parts import Column, Section, Table
from ..study import Study
from ..text import ABSENT, count, with_interval


def equal(study: Study) -> Section | None:
    """A row for each method beside the first one of its size, a column for each task; None without such a pair."""
    groups = sizes([summary for own in study.summaries.values() for summary in own])
    rows = tuple(_row(study, method, first, size) for size, (first, *others) in groups.items() for method in others)
    if not rows:
        return None
    table = Table(
        name="equal-parameters",
        caption="Score minus that of the first method of the same size, to within a tenth",
        columns=(
            Column("Methods"),
            Column("Adapter parameters", "number"),
            *(Column(task, "number") for task in study.scored_tasks()),
        ),
        rows=rows,
        note=note(study, TIE, *_directions(study)),
    )
    return Section("equal-parameters", "At equal parameters", tables=(table,))


def _directions(study: Study) -> Sequence[str]:
    less = [task for task in study.scored_tasks() if not study.summaries[task][0].greater_is_better]
    return [f"Less is better on {', '.join(less)}."] if less else []


def _row(study: Study, method: str, first: str, size: int) -> tuple[str, ...]:
    cells = (_cell(study.summary(task, method), study.summary(task, first)) for task in study.scored_tasks())
    return (f"{method} minus {first}", count(size), *cells)


def _cell(own: Summary | None, other: Summary | None) -> str:
    if own is None or other is None:
        return ABSENT
    found = paired_difference(own.scores, other.scores, greater_is_better=own.greater_is_better)
    return ABSENT if found is None else f"{with_interval(found.interval, difference=True)}, {found.verdict}"
