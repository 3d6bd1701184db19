"""Each task's table: scores, differences from the reference, and rivals by size and by score."""

from collections.abc import Sequence

from ...statistics import Summary
from ...statistics_parameters import Rivals, rivals
from ..notes import TIE, note, search
from ..parts import Column, Section, Table
from ..study import Study
from ..text import ABSENT, count, line, listed, rate, with_interval

_COLUMNS = (
    Column("Method"),
    Column("Adapter parameters", "number"),
    Column("Learning rate", "number"),
    Column("Seeds", "number"),
    Column("Mean [95% interval]", "number"),
    Column("Minus reference [95% interval]", "number"),
    Column("Verdict", "verdict"),
    Column("Minus the best other with no more parameters"),
    Column("Fewest parameters of others that score as well"),
)


def scores(study: Study) -> Section:
    """A table for each task."""
    tables = tuple(_table(study, task) for task in study.tasks if study.summaries[task])
    text = (
        "Scores are on the untouched split, of the epoch that the validation rows chose. Methods are compared by their "
        "adapter's parameters, without the head's, which every method trains. Intervals are over seeds alone: what "
        "other test rows would have given is not in them. The last column goes by mean scores, ties or not."
    )
    return Section(
        name="scores",
        heading="Scores by task",
        paragraphs=(text, *search(study)) if tables else ("There is no run yet.",),
        tables=tables,
    )


def _table(study: Study, task: str) -> Table:
    summaries = study.summaries[task]
    told = summaries[0]
    by_method = {found.method.method: found for found in rivals(summaries)}
    better = "greater is better" if told.greater_is_better else "less is better"
    return Table(
        name=f"scores-{study.slugs[task]}",
        caption=f"{task}: {line(told.metric)} on the untouched split ({better}); reference: {study.reference}",
        columns=_COLUMNS,
        rows=tuple(_row(study, summary, by_method.get(summary.method)) for summary in summaries),
        note=note(study, TIE, *_heads(summaries)),
    )


def _heads(summaries: Sequence[Summary]) -> tuple[str, ...]:
    """What the head adds to the parameters of the table."""
    sizes = sorted({summary.head_parameters for summary in summaries if summary.head_parameters})
    return (f"The head's own parameters: {listed(map(count, sizes))}.",) if sizes else ()


def _row(study: Study, summary: Summary, found: Rivals | None) -> tuple[str, ...]:
    return (
        summary.method,
        count(summary.parameters),
        _setting(study, summary),
        str(len(summary.scores)) + (f" ({summary.failed} failed)" if summary.failed else ""),
        with_interval(summary.interval),
        "reference" if summary.method == study.reference else _difference(summary),
        summary.against.verdict if summary.against else "",
        _best(found),
        _cheapest(found),
    )


def _setting(study: Study, summary: Summary) -> str:
    """The chosen learning rate, whether it lies at an end of those tried, and whatever else the search varied."""
    if summary.learning_rate is None:
        return ABSENT
    ends = {summary.rates[0]: "the lowest tried", summary.rates[-1]: "the highest tried"}
    end = ends.get(summary.learning_rate) if len(summary.rates) > 1 else None  # a better one may lie beyond it
    varied = study.runs(summary.task, summary.method)[0].settings
    others = [line(f"{key}={value}") for key, value in varied.items()]
    return ", ".join((rate(summary.learning_rate), *filter(None, [end]), *others))


def _difference(summary: Summary) -> str:
    return with_interval(summary.against.interval if summary.against else None, difference=True)


def _best(found: Rivals | None) -> str:
    if found is None:
        return ABSENT
    if found.best is None:
        return "no other is as small"
    if found.difference is None:
        return f"{found.best.method}: no seed in common"
    return (
        f"{found.best.method}: {with_interval(found.difference.interval, difference=True)}, {found.difference.verdict}"
    )


def _cheapest(found: Rivals | None) -> str:
    if found is None:
        return ABSENT
    if found.cheapest is None:
        return "no other scores as well"
    return f"{count(found.cheapest.parameters)} ({found.cheapest.method})"
