"""What a study's records say of each method on each task, and over the tasks."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .record import Record
from .statistics_interval import Difference, Interval, Verdict, interval_of, paired_difference


@dataclass(frozen=True)
class Summary:
    """One method on one task.

    Attributes:
        scores: seed -> score on the untouched split, finite ones only.
        interval: of these scores; None where there are none.
        against: difference from the reference; None for the reference itself and where they share no seed.
        learning_rate: the chosen one; None where no run at a chosen rate is finished.
        rates: all that were tried, ascending, failed runs included, missing ones not.
        parameters: trainable in the adapter; None where no run is finished.
        head_parameters: trainable in new modules; None where no run is finished.
        seconds: mean training time of the runs at the chosen rate.
        peak_memory: the largest of these runs, in bytes; None where none was measured.
        failed: number of failed runs.
    """

    task: str
    method: str
    metric: str
    greater_is_better: bool
    scores: dict[int, float]
    interval: Interval | None
    against: Difference | None
    learning_rate: float | None
    rates: tuple[float, ...]
    parameters: int | None
    head_parameters: int | None
    n: int | None
    r: int | None
    equivalent_rank: int | None
    epochs: float | None
    seconds: float | None
    peak_memory: int | None
    failed: int


@dataclass(frozen=True)
class Overall:
    """One method over the tasks that count (see `tasks_that_count`).

    Attributes:
        interval: of the mean over tasks, by seed; None where the method lacks a task or no seed has all tasks, and
            where the tasks' scores do not all get better the same way.
        against: the same, as a difference from the reference.
        rank: mean over tasks of its rank by mean score, 1 is best; None where it lacks a task.
        parameters: of the adapter, mean over tasks; None where no run is finished.
        verdicts: how often each verdict was given.
        greater_is_better: of the tasks' scores.
    """

    method: str
    interval: Interval | None
    against: Difference | None
    rank: float | None
    parameters: float | None
    verdicts: Counter[Verdict]
    greater_is_better: bool


def summarise(records: Sequence[Record], reference: str) -> list[Summary]:
    """A summary for each task and method that has a record, in the order in which they first come."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.task, record.method), []).append(record)
    scores = {key: _scores(group) for key, group in groups.items()}
    return [
        _summary(group, scores[task, method], scores.get((task, reference), {}) if method != reference else {})
        for (task, method), group in groups.items()
    ]


def _scores(group: Iterable[Record]) -> dict[int, float]:
    # Of the chosen runs alone: the search has left others with the same seeds.
    tested = ((record.seed, record.test_score) for record in group if record.status == "done" and record.chosen)
    finite = {seed: score for seed, score in tested if score is not None and math.isfinite(score)}
    return dict(sorted(finite.items()))


def _summary(group: Sequence[Record], scores: dict[int, float], reference: dict[int, float]) -> Summary:
    done = [record for record in group if record.status == "done"]
    chosen = [record for record in done if record.chosen]
    told = (chosen or done or group)[0]
    memory = [record.peak_memory for record in chosen if record.peak_memory is not None]
    return Summary(
        task=told.task,
        method=told.method,
        metric=told.metric,
        greater_is_better=told.greater_is_better,
        scores=scores,
        interval=interval_of(scores.values()),
        against=paired_difference(scores, reference, greater_is_better=told.greater_is_better),
        learning_rate=chosen[0].learning_rate if chosen else None,
        rates=tuple(sorted({record.learning_rate for record in group if record.status != "missing"})),
        parameters=told.parameters if done else None,
        head_parameters=told.head_parameters if done else None,
        n=told.n,
        r=told.r,
        equivalent_rank=told.equivalent_rank,
        epochs=_mean(record.epochs for record in chosen),
        seconds=_mean(record.train_seconds for record in chosen),
        peak_memory=max(memory, default=None),
        failed=sum(record.status == "failed" for record in group),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found) if found else None


def tasks_that_count(summaries: Sequence[Summary]) -> list[str]:
    """The tasks that means and ranks over tasks are of: with the most scores of methods that have all of them.

    A task that has just begun would leave all other methods without a mean; a method that lacks a task takes it from
    none.
    """
    methods: dict[str, set[str]] = {}
    for summary in summaries:
        if summary.interval is not None:
            methods.setdefault(summary.task, set()).add(summary.method)
    ordered = sorted(methods, key=lambda task: -len(methods[task]))
    scores = [len(set.intersection(*(methods[task] for task in ordered[:n]))) * n for n in range(1, len(ordered) + 1)]
    most = max((n for n, score in enumerate(scores, start=1) if score == max(scores)), default=0)
    return [task for task in methods if task in ordered[:most]]


def overall(summaries: Sequence[Summary], reference: str) -> list[Overall]:
    """Each method over the tasks that count, in the order of the summaries."""
    tasks = tasks_that_count(summaries)
    scored = [summary for summary in summaries if summary.interval is not None and summary.task in tasks]
    ranks = average_ranks(scored)
    by_method: dict[str, list[Summary]] = {}
    for summary in summaries:
        by_method.setdefault(summary.method, []).append(summary)
    same_way = len({summary.greater_is_better for summary in scored}) == 1
    means = {method: _by_seed(own, tasks) if same_way else {} for method, own in by_method.items()}
    found = []
    for method, own in by_method.items():
        better = own[0].greater_is_better
        others = means.get(reference, {}) if method != reference else {}
        found.append(
            Overall(
                method=method,
                interval=interval_of(means[method].values()),
                against=paired_difference(means[method], others, greater_is_better=better),
                rank=ranks.get(method),
                parameters=_mean(summary.parameters for summary in own),
                verdicts=Counter(summary.against.verdict for summary in own if summary.against is not None),
                greater_is_better=better,
            )
        )
    return found


def _by_seed(own: Sequence[Summary], tasks: Sequence[str]) -> dict[int, float]:
    """Seed -> mean over all tasks, of the seeds that have every task."""
    scores = {summary.task: summary.scores for summary in own}
    if not tasks or any(task not in scores for task in tasks):
        return {}
    seeds = set.intersection(*(set(scores[task]) for task in tasks))
    return {seed: math.fsum(scores[task][seed] for task in tasks) / len(tasks) for seed in sorted(seeds)}


def average_ranks(summaries: Sequence[Summary]) -> dict[str, float]:
    """Method -> mean over tasks of its rank by mean score, of the methods with a score on every task.

    1 is best; equal means share the mean of their ranks.
    """
    from scipy.stats import rankdata

    by_task: dict[str, dict[str, float]] = {}
    for summary in summaries:
        if summary.interval is not None:
            sign = -1.0 if summary.greater_is_better else 1.0
            by_task.setdefault(summary.task, {})[summary.method] = sign * summary.interval.mean
    if not by_task:
        return {}
    everywhere = set.intersection(*(set(means) for means in by_task.values()))
    methods = [method for method in dict.fromkeys(summary.method for summary in summaries) if method in everywhere]
    ranks = [rankdata([means[method] for method in methods]) for means in by_task.values()]
    return {method: float(sum(rank[i] for rank in ranks) / len(ranks)) for i, method in enumerate(methods)}
