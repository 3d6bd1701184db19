"""Every run with its recipe; failed and missing ones first."""

from collections import Counter

from ...record import Record
from ..notes import note
from ..parts import Column, Fold, Section, Table
from ..study import Study
from ..text import ABSENT, block, count, duration, line, listed, memory, number, rate

_WORDS = {"done": "done", "failed": "failed", "missing": "not run yet"}


def runs(study: Study) -> Section:
    """Counts, tables of failed and missing runs, and each run folded."""
    states = Counter(record.status for record in study.records)
    told = f"{states['done']} done, {states['failed']} failed, {states['missing']} not run yet."
    tables = (
        _table(study, "failed", "Failed runs", with_reason=True),
        _table(study, "missing", "Runs that are planned and not run yet", with_reason=False),
    )
    folds: dict[str, list[Fold]] = {}
    for i, record in enumerate(study.records, start=1):
        folds.setdefault(record.task, []).append(_fold(f"run-{i}", record))
    return Section(
        name="runs",
        heading="Runs",
        paragraphs=(told, *_commits(study)),
        tables=tuple(table for table in tables if table is not None),
        folds=tuple((task, tuple(own)) for task, own in folds.items()),
    )


def _commits(study: Study) -> tuple[str, ...]:
    """Whose code the finished runs are of, where it is known."""
    found = dict.fromkeys(line(record.commit) for record in study.records if record.status == "done" and record.commit)
    return (f"Commits that the finished runs are of: {listed(found)}.",) if found else ()


def _table(study: Study, status: str, caption: str, *, with_reason: bool) -> Table | None:
    found = [record for record in study.records if record.status == status]
    if not found:
        return None
    columns = [
        Column("Run"),
        Column("Task"),
        Column("Method"),
        Column("Learning rate", "number"),
        Column("Seed", "number"),
    ]
    reasons = [(line(record.reason or "unknown"),) if with_reason else () for record in found]
    return Table(
        name=f"{status}-runs",
        caption=f"{caption} ({len(found)})",
        columns=(*columns, *([Column("Reason")] if with_reason else [])),
        rows=tuple(
            (line(record.run), record.task, record.method, rate(record.learning_rate), str(record.seed), *reason)
            for record, reason in zip(found, reasons, strict=True)
        ),
        note=note(study),
    )


def _fold(name: str, record: Record) -> Fold:
    told = [record.method, f"learning rate {rate(record.learning_rate)}", f"seed {record.seed}", _WORDS[record.status]]
    if record.chosen:
        told.append("chosen")
    if record.test_score is not None:
        told.append(f"{line(record.metric)} {number(record.test_score)}")
    return Fold(name, ", ".join(told), _facts(record), block(record.recipe), "Recipe")


def _facts(record: Record) -> tuple[tuple[str, str], ...]:
    """What is known of a run."""
    varied = ", ".join(f"{key}={value}" for key, value in record.settings.items())
    scores = ", ".join(f"{name} {number(value)}" for name, value in record.test_metrics.items())
    rows = (record.train_rows, record.validation_rows, record.test_rows)
    optional: tuple[tuple[str, object, str], ...] = (
        ("Reason", record.reason, record.reason or ""),
        ("Other settings", varied or None, varied),
        ("Validation score", record.validation_score, number(record.validation_score)),
        ("Scores on the untouched split", scores or None, scores),
        (
            "Rows for training, validation, test",
            any(value is not None for value in rows) or None,
            " / ".join(map(count, rows)),
        ),
        ("Adapter parameters", record.parameters, count(record.parameters)),
        ("Head parameters", record.head_parameters, count(record.head_parameters)),
        ("Frozen parameters", record.base_parameters, count(record.base_parameters)),
        ("n, r", record.n, f"{record.n}, {record.r}"),
        ("Equivalent rank", record.equivalent_rank, f"{record.equivalent_rank}"),
        ("Epochs trained", record.epochs, _epochs(record.epochs)),
        ("Epoch kept", record.best_epoch, _epochs(record.best_epoch)),
        ("Optimiser steps", record.steps, count(record.steps)),
        ("Training time", record.train_seconds, duration(record.train_seconds)),
        ("Step, median", record.step_seconds, duration(record.step_seconds)),
        ("Peak memory", record.peak_memory, memory(record.peak_memory)),
        ("Machine", record.machine, record.machine or ""),
        ("Threads", record.threads, f"{record.threads}"),
        ("Date", record.date, record.date or ""),
        ("Commit", record.commit, record.commit or ""),
    )
    known = ((heading, text) for heading, value, text in optional if value is not None)
    return tuple(
        (heading, line(text)) for heading, text in (("Run", record.run), ("PEFT method", record.peft_method), *known)
    )


def _epochs(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4g}"
