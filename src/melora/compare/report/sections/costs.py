"""Time and memory of the runs at the chosen settings."""

from functools import partial
from statistics import median

from ..drawing.bars import Bars, draw_bars
from ..notes import note
from ..parts import Column, Picture, Section, Table
from ..study import Study
from ..text import ABSENT, duration, line, listed, memory
from .common import styles

_COLUMNS = (
    Column("Method"),
    Column("Runs", "number"),
    Column("Step, median", "number"),
    Column("Training, mean", "number"),
    Column("Peak memory, largest", "number"),
    Column("Epochs, mean", "number"),
    Column("Measured on"),
)


def costs(study: Study) -> Section:
    """A picture and a table for each task."""
    tasks = [task for task in study.tasks if any(study.runs(task, method) for method in study.methods)]
    pictures = (_picture(study, task) for task in tasks)
    return Section(
        name="costs",
        heading="Time and memory",
        paragraphs=_explained(study) if tasks else ("No run at a chosen setting is finished yet.",),
        pictures=tuple(picture for picture in pictures if picture is not None),
        tables=tuple(_table(study, task) for task in tasks),
    )


def _explained(study: Study) -> tuple[str, ...]:
    text = "Of the finished runs at the chosen settings. Training time includes its evaluations."
    places = {_place(record.machine, record.threads) for record in study.records if record.status == "done"}
    if len(places) > 1:
        return (
            text,
            f"The runs are from {len(places)} set-ups, so their times are not all comparable: see the last column.",
        )
    return (text,)


def _place(machine: str | None, threads: int | None) -> str:
    return line(machine or "unknown machine") + (f", {threads} threads" if threads is not None else "")


def _step(study: Study, task: str, method: str) -> float | None:
    """Median over runs of their median step."""
    found = [record.step_seconds for record in study.runs(task, method) if record.step_seconds is not None]
    return median(found) if found else None


def _picture(study: Study, task: str) -> Picture | None:
    summaries = study.summaries[task]
    steps = {summary.method: _step(study, task, summary.method) for summary in summaries}
    peaks = {summary.method: summary.peak_memory for summary in summaries}
    timed = {method: 1000 * value for method, value in steps.items() if value is not None}
    sized = {method: value / 2**20 for method, value in peaks.items() if value is not None}
    measures = [
        Bars("milliseconds a step, median", timed, {method: duration(steps[method]) for method in timed}),
        Bars("peak memory, MiB", sized, {method: memory(peaks[method]) for method in sized}),
    ]
    measures = [bars for bars in measures if bars.values]
    if not measures:
        return None
    return Picture(
        name=f"costs-{study.slugs[task]}",
        caption=f"Time of an optimiser step and peak memory, {task}",
        alt="The values are in the table below.",
        draw=partial(draw_bars, title=task, measures=measures, styles=styles(study)),
        height=0.4 + sum(0.65 + 0.24 * len(bars.values) for bars in measures),
    )


def _table(study: Study, task: str) -> Table:
    rows = []
    for summary in study.summaries[task]:
        runs = study.runs(task, summary.method)
        places = dict.fromkeys(_place(record.machine, record.threads) for record in runs)
        rows.append(
            (
                summary.method,
                str(len(runs)),
                duration(_step(study, task, summary.method)),
                duration(summary.seconds),
                memory(summary.peak_memory),
                ABSENT if summary.epochs is None else f"{summary.epochs:.3g}",
                listed(places) or ABSENT,
            )
        )
    return Table(
        name=f"costs-{study.slugs[task]}-table",
        caption=f"{task}: time and memory",
        columns=_COLUMNS,
        rows=tuple(rows),
        note=note(study),
    )
