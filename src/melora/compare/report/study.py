"""A study with its statistics, computed once for all parts of the report."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..about import About
from ..record import Record
from ..statistics import Overall, Summary, overall, summarise, tasks_that_count
from .text import line, slugs


@dataclass(frozen=True)
class Study:
    """What the sections are written from.

    Attributes:
        records: in the order of tasks, methods, learning rates and seeds.
        tasks, methods: the study's, in its order, then any others that the records name.
        summaries: of each task, in the order of methods.
        overall: in the order of methods.
        slugs: task -> what its pictures are called.
    """

    about: About
    records: tuple[Record, ...]
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    summaries: dict[str, list[Summary]]
    overall: list[Overall]
    slugs: dict[str, str]

    @property
    def reference(self) -> str:
        return self.about.reference

    def runs(self, task: str, method: str, *, chosen: bool = True) -> list[Record]:
        """Finished runs of a method on a task; those at the chosen setting alone, or all."""
        return [
            record
            for record in self.records
            if (record.task, record.method, record.status) == (task, method, "done") and (record.chosen or not chosen)
        ]

    def summary(self, task: str, method: str) -> Summary | None:
        """None where the method has no run on the task, not even a planned one."""
        return next((summary for summary in self.summaries[task] if summary.method == method), None)

    def scored_tasks(self) -> list[str]:
        """Tasks on which any method has a score."""
        return [task for task in self.tasks if any(summary.interval for summary in self.summaries[task])]

    def counted_tasks(self) -> list[str]:
        """Those that the means and ranks over tasks are of."""
        return tasks_that_count([summary for own in self.summaries.values() for summary in own])


def study_of(about: About, records: Sequence[Record]) -> Study:
    """A study and its statistics; names of tasks and methods become single lines."""
    about = replace(
        about,
        reference=line(about.reference),
        tasks=tuple(map(line, about.tasks)),
        methods=tuple(map(line, about.methods)),
        rates={line(method): rates for method, rates in about.rates.items()},
    )
    named = [replace(record, task=line(record.task), method=line(record.method)) for record in records]
    tasks = _ordered(about.tasks, (record.task for record in named))
    methods = _ordered(about.methods, (record.method for record in named))
    ordered = sorted(
        named,
        key=lambda record: (
            tasks.index(record.task),
            methods.index(record.method),
            record.learning_rate,
            str(sorted(record.settings.items(), key=str)),  # values of one key may be of several types
            record.seed,
        ),
    )
    summaries = summarise(ordered, about.reference)
    by_method = {row.method: row for row in overall(summaries, about.reference)}
    return Study(
        about=about,
        records=tuple(ordered),
        tasks=tasks,
        methods=methods,
        summaries={task: [summary for summary in summaries if summary.task == task] for task in tasks},
        overall=[by_method[method] for method in methods if method in by_method],
        slugs=slugs(tasks),
    )


def _ordered(planned: Iterable[str], met: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*planned, *met)))
