"""The table of docs/glue.md and results/glue/results.csv, from the records of finished runs."""

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from melora.errors import MeloraError
from melora.training.folder import write_text

from .glue_records import read_record

_HEAD = """# GLUE

`python -m experiments.glue` trains the recipes and writes this page and `results/glue/`: one JSON file for each run,
with its recipe, scores and environment, and `results.csv`. A run that has a file there is not run again.

"""
_NOTES = """
Scores are of GLUE's validation split, which also chose the epoch of each run, so they are slightly optimistic; the
test split's labels are hidden. Learning rates are the recipes' own, not tuned for each task: a difference between two
methods here is a difference between two recipes. After ± stands the standard deviation over the seeds.

all-MiniLM-L6-v2 was tuned on SNLI, MNLI, Quora pairs and SQuAD2 before: QQP, MNLI and QNLI are contaminated for it.
CoLA, MRPC, RTE and SST-2 are not known to be; STS-B's sources may overlap.
"""
_COLUMNS = ("task", "method", "seed", "metric", "score", "learning_rate", "adapter_parameters", "head_parameters")
_MORE = ("epochs", "best_epoch", "steps", "train_rows", "validation_rows", "train_seconds", "machine", "git_commit")

Record = dict[str, Any]


def write_report(results: Path, page: Path) -> None:
    """Write the page and results.csv from all records in `results`.

    Raises:
        MeloraError: there is none yet, or one is damaged.
    """
    files = sorted(results.glob("*/*.json"))
    if not files:
        raise MeloraError(f"{results}: no records of finished runs yet, so there is nothing to report")
    records = [read_record(file) for file in files]
    write_text(results / "results.csv", to_csv(records))
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, _HEAD + "\n".join(table(records)) + "\n\n" + "\n".join(conditions(records)) + "\n" + _NOTES)


def to_csv(records: Sequence[Record]) -> str:
    """One line for each run and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*_COLUMNS, *_MORE))
    for record in records:
        results, environment = record["results"], record["environment"]
        for metric, score in results["metrics"].items():
            writer.writerow(
                (
                    results["task"],
                    _method(record),
                    record["recipe"]["seed"],
                    metric,
                    score,
                    results["learning_rate"],
                    results["parameters"]["adapter"],
                    results["parameters"]["head"],
                    results["epochs"],
                    results["best_epoch"],
                    results["steps"],
                    results["rows"]["train"],
                    results["rows"]["validation"],
                    results["train_seconds"],
                    environment["machine"],
                    environment["git_commit"],
                )
            )
    return text.getvalue()


def table(records: Sequence[Record]) -> list[str]:
    """Markdown: one line for each task and method, over its seeds."""
    lines = [
        "| task | method | score | seeds | learning rate | adapter parameters | training rows | epochs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group in _groups(records):
        results = group[0]["results"]
        scores = ", ".join(f"{name} {_spread(group, name)}" for name in _ordered(results))
        seeds = ", ".join(str(record["recipe"]["seed"]) for record in group)
        epochs = group[0]["recipe"]["training"].get("num_train_epochs", 3)
        lines.append(
            f"| {results['task'].removeprefix('glue/')} | {_method(group[0])} | {scores} | {seeds} | "
            f"{results['learning_rate']:g} | {results['parameters']['adapter']:,} | {results['rows']['train']:,} | "
            f"{epochs:g} |"
        )
    return lines


def conditions(records: Sequence[Record]) -> list[str]:
    """What the runs have in common, or not: models, machines, versions."""

    def told(values: list[str]) -> str:
        return "; ".join(sorted(set(values)))

    models = told([record["environment"]["base_model"]["name"] for record in records])
    machines = told([f"{r['environment']['machine']}, {r['environment']['threads']} thread(s)" for r in records])
    packages = [record["environment"]["packages"] for record in records]
    versions = told([f"torch {p['torch']}, transformers {p['transformers']}, peft {p['peft']}" for p in packages])
    return [f"Model: {models}. Machine: {machines}. {versions}."]


def _groups(records: Sequence[Record]) -> list[list[Record]]:
    """Runs that differ in their seed alone, in the order of their tasks and methods."""
    groups: dict[tuple[Any, ...], list[Record]] = {}

    def order(record: Record) -> tuple[Any, ...]:
        return record["results"]["task"], _method(record), record["results"]["learning_rate"], record["recipe"]["seed"]

    for record in sorted(records, key=order):
        recipe = {key: value for key, value in record["recipe"].items() if key not in ("seed", "output")}
        groups.setdefault((record["results"]["task"], _method(record), repr(recipe)), []).append(record)
    return list(groups.values())


def _method(record: Record) -> str:
    """Method and ranks, as `melora 8x1` or `lora r=8`."""
    adapter = record["recipe"]["adapter"]
    method = adapter.get("method", "melora")
    shape = f"{adapter.get('n', 8)}x{adapter.get('r', 1)}" if method == "melora" else ""
    rank = f"r={adapter['r']}" if method != "melora" and "r" in adapter else ""
    return " ".join(part for part in (method, shape, rank) if part)


def _ordered(results: dict[str, Any]) -> list[str]:
    return sorted(results["metrics"], key=lambda name: (name != results["primary"], name))


def _spread(group: Sequence[Record], metric: str) -> str:
    scores = [record["results"]["metrics"][metric] for record in group]
    spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.3f}{spread}"
