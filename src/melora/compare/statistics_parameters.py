"""Scores beside the parameters that they take: the Pareto front, rivals of equal size, rivals of equal score."""

from collections.abc import Sequence
from dataclasses import dataclass

from .statistics import Summary
from .statistics_interval import Difference, paired_difference


@dataclass(frozen=True)
class Rivals:
    """A method on a task beside the two others that question it.

    Attributes:
        method: the method's summary.
        best: the other method with no more adapter parameters whose mean score is best; None where there is none.
        difference: the method's score minus that of `best`; None without it, or without a seed in common.
        cheapest: the other method with the fewest adapter parameters whose mean score is at least as good; None where
            there is none.
    """

    method: Summary
    best: Summary | None
    difference: Difference | None
    cheapest: Summary | None


def pareto_front(points: Sequence[tuple[float, float]], *, greater_is_better: bool) -> list[int]:
    """Indices of the (parameters, score) that no other beats: fewer or equal of one, and better of the other.

    Returns:
        By ascending parameters, so with strictly improving scores; of equal points the first.
    """
    sign = -1.0 if greater_is_better else 1.0
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], sign * points[i][1], i)):
        if not front or sign * points[i][1] < sign * points[front[-1]][1]:
            front.append(i)
    return front


def sizes(summaries: Sequence[Summary]) -> dict[int, list[str]]:
    """Methods of the same size, each in the order of the summaries: the smallest of them -> two names or more.

    A method belongs to the largest size that it exceeds by no more than a tenth: a learned core adds a little. One
    whose size is another on another task is left out.
    """
    found: dict[str, set[int]] = {}
    for summary in summaries:
        if summary.parameters:
            found.setdefault(summary.method, set()).add(summary.parameters)
    fixed = {method: next(iter(own)) for method, own in found.items() if len(own) == 1}
    starts: list[int] = []
    for size in sorted(set(fixed.values())):
        if not starts or size > 1.1 * starts[-1]:
            starts.append(size)
    groups = {start: [name for name, size in fixed.items() if start <= size <= 1.1 * start] for start in starts}
    return {start: names for start, names in groups.items() if len(names) > 1}


def rivals(summaries: Sequence[Summary]) -> list[Rivals]:
    """For each method of one task that has a score, who does better with no more, and who does as well with least.

    Args:
        summaries: of one task.
    """
    known = [summary for summary in summaries if summary.interval is not None and summary.parameters is not None]
    found = []
    for own in known:
        others = [other for other in known if other is not own]
        smaller = [other for other in others if _size(other) <= _size(own)]
        as_good = [other for other in others if _badness(other) <= _badness(own)]
        best = min(smaller, key=lambda other: (_badness(other), _size(other)), default=None)
        difference = None
        if best is not None:
            difference = paired_difference(own.scores, best.scores, greater_is_better=own.greater_is_better)
        found.append(
            Rivals(
                method=own,
                best=best,
                difference=difference,
                cheapest=min(as_good, key=lambda other: (_size(other), _badness(other)), default=None),
            )
        )
    return found


def _size(summary: Summary) -> int:
    return summary.parameters or 0


def _badness(summary: Summary) -> float:
    """The mean score, turned so that less is better."""
    mean = summary.interval.mean if summary.interval is not None else float("inf")
    return -mean if summary.greater_is_better else mean
