"""What several sections share."""

from collections.abc import Iterable

from ..drawing.palette import Style, style
from ..study import Study


def styles(study: Study) -> dict[str, Style]:
    """Method -> how it is drawn, the same in every picture."""
    return {method: style(place) for place, method in enumerate(study.methods)}


def score_label(metric: str, part: str, *, greater_is_better: bool) -> str:
    """An axis of scores: accuracy on the untouched split."""
    return f"{metric}, {part}" + ("" if greater_is_better else " (less is better)")


def directions(study: Study) -> set[bool]:
    """Whether greater is better, of the tasks that have scores."""
    return {
        summary.greater_is_better
        for task in study.scored_tasks()
        for summary in study.summaries[task]
        if summary.interval
    }


def metrics(study: Study) -> list[str]:
    """The tasks' metrics, each once."""
    return list(dict.fromkeys(summary.metric for task in study.scored_tasks() for summary in study.summaries[task]))


def mean(values: Iterable[float | None]) -> float | None:
    """Of the values that there are; None without any."""
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None
