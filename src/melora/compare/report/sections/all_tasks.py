"""The table over all tasks."""

from ...statistics import Overall
from ..notes import TIE, note
from ..parts import Column, Section, Table
from ..study import Study
from ..text import ABSENT, amount, count, line, listed, with_interval
from .common import directions, metrics

_COLUMNS = (
    Column("Method"),
    Column("Adapter parameters, mean", "number"),
    Column("Tasks with a score", "number"),
    Column("Average rank", "number"),
    Column("Wins", "number"),
    Column("Ties", "number"),
    Column("Losses", "number"),
    Column("Undecided", "number"),
    Column("Mean over tasks [95% interval]", "number"),
    Column("Minus reference [95% interval]", "number"),
)


def all_tasks(study: Study) -> Section:
    """Average rank, wins, ties and losses, and the mean."""
    tasks = study.scored_tasks()
    if not tasks:
        return Section("all-tasks", "Over all tasks", ("No task has a score yet.",))
    table = Table(
        name="all-tasks-table",
        caption=f"Over {amount(len(tasks), 'task', 'tasks')} with scores; reference: {study.reference}",
        columns=_COLUMNS,
        rows=tuple(_row(study, row) for row in study.overall),
        note=note(study, TIE),
    )
    return Section("all-tasks", "Over all tasks", (_explained(study),), tables=(table,))


def _explained(study: Study) -> str:
    text = (
        "A rank is a method's place by mean score on a task, 1 is best, among the methods that have a score on every "
        "task. The mean over tasks is taken for each seed that has all tasks."
    )
    counted = study.counted_tasks()
    others = [task for task in study.scored_tasks() if task not in counted]
    if others:
        text += f" Rank and mean are of {listed(counted)}: on {listed(others)} too few methods have a score."
    if len(directions(study)) > 1:
        return f"{text} There is none here: on some tasks more is better, on others less."
    names = metrics(study)
    return text if len(names) == 1 else f"{text} It mixes metrics: {listed(map(line, names))}."


def _row(study: Study, row: Overall) -> tuple[str, ...]:
    own = [summary for task in study.tasks if (summary := study.summary(task, row.method))]
    reference = row.method == study.reference
    verdicts = tuple(
        ABSENT if reference else str(row.verdicts[verdict]) for verdict in ("win", "tie", "loss", "undecided")
    )
    return (
        row.method,
        count(row.parameters),
        str(sum(summary.interval is not None for summary in own)),
        ABSENT if row.rank is None else f"{row.rank:.2f}",
        *verdicts,
        with_interval(row.interval),
        "reference" if reference else with_interval(row.against.interval if row.against else None, difference=True),
    )
