"""A group's rows as a table on the terminal."""

from rich.console import Console
from rich.table import Table

from .row import Row


def print_table(console: Console, rows: list[Row], title: str, labels: list[str]) -> None:
    """One line a contestant: time, its ratio to the first, memory; without columns that the suite does not measure."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("contestant", no_wrap=True)
    columns = [(heading, [cell(row) for row in rows]) for heading, cell in CELLS.items()]
    shown = [(heading, cells) for heading, cells in columns if any(cells)]
    for heading, _ in shown:
        table.add_column(heading, justify="right")
    for i, label in enumerate(labels):
        table.add_row(label, *(cells[i] for _, cells in shown))
    console.print(table)


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "" if value is None else format(value / factor, form)


CELLS = {
    "parameters": lambda row: f"{row.parameters:,}",
    "ms": lambda row: _number(row.ms_p50, ".3g"),
    "x first, min": lambda row: _number(row.ratio_min, ".3f"),
    "p50": lambda row: _number(row.ratio_p50, ".3f"),
    "p20 - p80": lambda row: "" if row.ratio_p20 is None else f"{row.ratio_p20:.3f} - {row.ratio_p80:.3f}",
    "kept, KiB": lambda row: _number(row.saved_bytes, ",.0f", 1024),
    "peak, KiB": lambda row: _number(row.peak_bytes, ",.0f", 1024),
}
