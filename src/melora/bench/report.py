"""A run's answers: a table on the terminal, rows in a CSV file."""

import csv
from dataclasses import asdict, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..errors import MeloraError
from .row import Row


def check_output(path: Path) -> None:
    """Raise MeloraError unless a new file can be made at `path`."""
    if path.exists():
        raise MeloraError(f"--output {path} exists: choose another name, results are never overwritten or mixed")
    if not path.parent.is_dir():
        raise MeloraError(f"--output {path}: there is no folder {path.parent}: make it first, or choose another")


def append_csv(path: Path, rows: list[Row]) -> None:
    """Add rows to `path`, with a header when it is new; called after every shape, so that a stopped run keeps them."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows({name: _rounded(value) for name, value in asdict(row).items()} for row in rows)


def _rounded(value: object) -> object:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def print_table(console: Console, rows: list[Row], labels: list[str]) -> None:
    """One shape's contestants, one line each: time over the frozen base, and what is kept for the backward pass."""
    first = rows[0]
    title = (
        f"{first.d_in} -> {first.d_out}, {first.tokens} tokens, n x r = {first.n} x {first.r}, {first.dtype}"
        f"{f', dropout {first.dropout}' if first.dropout else ''}, {first.threads} threads"
    )
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("forward + backward", no_wrap=True)
    for heading in ("parameters", "ms", "x base, min", "p50", "p20 - p80", "kept, KiB"):
        table.add_column(heading, justify="right")
    for label, row in zip(labels, rows, strict=True):
        table.add_row(
            label,
            f"{row.parameters:,}",
            f"{row.ms_p50:.3g}",
            f"{row.ratio_min:.3f}",
            f"{row.ratio_p50:.3f}",
            f"{row.ratio_p20:.3f} - {row.ratio_p80:.3f}",
            f"{row.saved_bytes / 1024:,.0f}",
        )
    console.print(table)
