"""MELoRA's scores over n and r."""

from functools import partial

from ...statistics import Summary
from ...statistics_interval import Interval
from ..drawing.heat import draw_heat
from ..notes import note
from ..parts import Column, Picture, Section, Table
from ..study import Study
from ..text import count, line, number, with_interval
from .common import directions

_TEXT = (
    "n is the number of minis and r the rank of one; the equivalent rank, n r, stands in each cell. A deeper cell is "
    "better. Where several methods share n and r, the best stands; the table names it."
)


def grid(study: Study) -> Section | None:
    """None unless MELoRA methods of two or more (n, r) have scores."""
    tasks = [task for task in study.scored_tasks() if len(_places(study, task)) > 1]
    if not tasks:
        return None
    pictures = [_picture(study, f"grid-{study.slugs[task]}", task, _best_means(study, task)) for task in tasks]
    over_all = _over_all(study)
    if len(tasks) > 1 and len(over_all) > 1:
        pictures.insert(0, _picture(study, "grid", None, over_all))
    return Section("grid", "n and r", (_TEXT,), pictures=tuple(pictures), tables=(_table(study, tasks),))


def _is_melora(study: Study, method: str) -> bool:
    return any(record.method == method and record.peft_method == "melora" for record in study.records)


def _places(study: Study, task: str) -> dict[tuple[int, int], list[tuple[Interval, Summary]]]:
    """(n, r) -> the MELoRA methods that have scores there, the best first."""
    found: dict[tuple[int, int], list[tuple[Interval, Summary]]] = {}
    for summary in study.summaries[task]:
        if summary.interval and summary.n and summary.r and _is_melora(study, summary.method):
            found.setdefault((summary.n, summary.r), []).append((summary.interval, summary))
    for own in found.values():
        own.sort(key=lambda scored: scored[0].mean, reverse=own[0][1].greater_is_better)
    return found


def _best_means(study: Study, task: str) -> dict[tuple[int, int], float]:
    return {place: own[0][0].mean for place, own in _places(study, task).items()}


def _over_all(study: Study) -> dict[tuple[int, int], float]:
    """(n, r) -> the best mean over tasks; nothing where the tasks' scores do not all get better the same way."""
    found: dict[tuple[int, int], float] = {}
    for row in study.overall:
        own = [summary for task in study.scored_tasks() if (summary := study.summary(task, row.method))]
        places = {(summary.n, summary.r) for summary in own}
        (n, r), *others = places or {(None, None)}
        if row.interval is None or others or not n or not r or not _is_melora(study, row.method):
            continue
        mean = row.interval.mean
        if (n, r) not in found or (mean > found[n, r]) == row.greater_is_better:
            found[n, r] = mean
    return found


def _picture(study: Study, name: str, task: str | None, scores: dict[tuple[int, int], float]) -> Picture:
    better = directions(study) == {True} if task is None else study.summaries[task][0].greater_is_better
    title = "mean over tasks" if task is None else task
    told = "; ".join(f"n={n}, r={r}: {number(score)}" for (n, r), score in sorted(scores.items()))
    return Picture(
        name=name,
        caption=f"MELoRA's score over n and r, {title}" + ("" if better else " (less is better)"),
        alt=line(f"{told}."),
        draw=partial(draw_heat, title=title, scores=scores, greater_is_better=better),
        height=1.1 + 0.62 * len({n for n, _ in scores}),
    )


def _cell(scored: list[tuple[Interval, Summary]], *, named: bool) -> str:
    """The best one's score; its method's name too where the place has several."""
    if not scored:
        return with_interval(None)
    interval, summary = scored[0]
    return with_interval(interval) + (f", {summary.method}" if named else "")


def _table(study: Study, tasks: list[str]) -> Table:
    found = {task: _places(study, task) for task in tasks}
    places = sorted(
        {place for of_task in found.values() for place in of_task}, key=lambda place: (place[0] * place[1], place)
    )
    rows = []
    for n, r in places:
        own = [found[task].get((n, r), []) for task in tasks]
        parameters = next(scored[0][1].parameters for scored in own if scored)
        names = {summary.method for scored in own for _, summary in scored}
        cells = (_cell(scored, named=len(names) > 1) for scored in own)
        rows.append((f"{n * r}", f"{n}", f"{r}", count(parameters), *cells))
    headings = ("Equivalent rank n r", "n", "r", "Adapter parameters", *tasks)
    return Table(
        name="grid-table",
        caption="MELoRA by equivalent rank: mean score [95% interval] on each task",
        columns=tuple(Column(heading, "number") for heading in headings),
        rows=tuple(rows),
        note=note(study),
    )
