"""melora inspect"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ..analysis import AdapterReport, inspect_adapter
from ..diversity import Overlap
from ..errors import MeloraError
from ..training.folder import ADAPTER, RECIPE

if TYPE_CHECKING:
    from ..training.mini_outputs import OutputReport

_COLUMNS = ("module", "shape (out x in)", "n", "r", "equivalent rank", "rank", "effective rank", "norm", "parameters")


def run(args: argparse.Namespace, console: Console) -> int:
    path = Path(args.run)
    is_run = (path / RECIPE).is_file()
    plot = None if args.plot is None else Path(args.plot)
    with_outputs = args.outputs or args.data is not None or args.rows is not None
    if plot is not None and plot.suffix != ".png":
        raise MeloraError(f"--plot {plot}: must end in .png")
    if with_outputs and not is_run:
        raise MeloraError(
            f"--outputs: needs a run folder, which says what the base model and the data are, and {path} is none"
        )
    report = inspect_adapter(path / ADAPTER if is_run else path, blocks=args.blocks)
    outputs = _measure(path, args) if with_outputs else None
    if plot is not None:
        _plot(report, outputs, plot, f"{report.method} of {path.name}")
    if args.json:
        extra = {} if outputs is None else {"outputs": outputs.to_dict()}
        console.print(json.dumps({**report.to_dict(), **extra}, indent=2), markup=False)
        return 0
    _show_layers(report, console)
    if args.diversity or outputs is not None or args.blocks is not None:
        _show_diversity(report, outputs, console)
    if plot is not None:
        console.print(f"written: {plot}", markup=False)
    return 0


def _measure(run: Path, args: argparse.Namespace) -> "OutputReport":
    from ..training.mini_outputs import ROWS, measure_run  # with all that training needs

    return measure_run(run, data=args.data, rows=ROWS if args.rows is None else args.rows)


def _plot(report: AdapterReport, outputs: "OutputReport | None", plot: Path, title: str) -> None:
    from ..training.diversity_plot import plot_diversity

    plot_diversity(report, outputs, title, plot)


def _show_layers(report: AdapterReport, console: Console) -> None:
    table = Table(*_COLUMNS, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for layer in report.layers:
        table.add_row(
            layer.name,
            f"{layer.d_out} x {layer.d_in}",
            *(str(number) for number in (layer.n, layer.r, layer.equivalent_rank, layer.rank)),
            f"{layer.effective_rank:.2f}",
            f"{layer.norm:.3g}",
            f"{layer.parameters:,}",
        )
    console.print(table)
    times = f", {report.lora_parameters / report.parameters:g} times as many" if report.parameters else ""
    console.print(
        f"{report.method}: {report.parameters:,} parameters in {len(report.layers)} modules; a LoRA of equal rank has "
        f"{report.lora_parameters:,}{times}; other trained parameters (head, biases): {report.other_parameters:,}"
    )


def _show_diversity(report: AdapterReport, outputs: "OutputReport | None", console: Console) -> None:
    """A second table, and a line on each of its measures; docs/inspect.md says how to read them."""
    heads = ["module", "off the diagonal", "A: mean", "most", "chance", "B: mean", "most", "chance"]
    table = Table(*heads, *(["outputs", "untrained A"] if outputs is not None else []), box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for layer in report.layers:
        cells = [
            "-" if layer.off_diagonal is None else f"{layer.off_diagonal:.1%} of {layer.blocks}",
            *_overlap_cells(layer.row_overlap),
            *_overlap_cells(layer.column_overlap),
        ]
        if outputs is not None:
            found = outputs.layers.get(layer.name)
            cells += (
                ["-", "-"] if found is None else [f"{found.trained:.3f}", _spread(found.random, found.random_deviation)]
            )
        table.add_row(layer.name, *cells)
    console.print()
    console.print(table)
    blocks = sorted({layer.blocks for layer in report.layers if layer.off_diagonal is not None})
    if report.off_diagonal is None:
        reason = "dW is 0" if any(layer.blocks > 1 for layer in report.layers) else "one block each; --blocks N sets N"
        console.print(f"off the diagonal: nothing to measure ({reason})", markup=False)
    else:
        chance = ", ".join(f"{1 - 1 / count:.1%} for {count}" for count in blocks)
        console.print(f"off the diagonal: {report.off_diagonal:.1%} of ||dW||^2; without any preference {chance}")
    for name, overlap in (("A (row spaces)", report.row_overlap), ("B (column spaces)", report.column_overlap)):
        console.print(f"overlap of {name}: {_overlap_words(overlap)}")
    if outputs is not None:
        _show_outputs(outputs, console)


def _show_outputs(outputs: "OutputReport", console: Console) -> None:
    found = [likeness for likeness in outputs.layers.values() if likeness is not None]
    if not found:
        console.print("likeness of outputs: nothing to compare (n = 1, dW is 0, or no linear layers)")
        return
    trained = sum(likeness.trained for likeness in found) / len(found)
    random = sum(likeness.random for likeness in found) / len(found)
    console.print(
        f"likeness of outputs (linear CKA): {trained:.3f}, with an untrained A {random:.3f}, on "
        f"{max(likeness.tokens for likeness in found):,} tokens of {outputs.rows:,} rows of {outputs.data}",
        markup=False,
    )


def _overlap_cells(overlap: Overlap | None) -> tuple[str, str, str]:
    if overlap is None:
        return "-", "-", "-"
    return f"{overlap.mean:.3f}", f"{overlap.largest:.3f}", _spread(overlap.chance, overlap.chance_deviation)


def _overlap_words(overlap: Overlap | None) -> str:
    if overlap is None:
        return "no pair of minis that are not zero"
    chance = _spread(overlap.chance, overlap.chance_deviation)
    words = f"{overlap.mean:.4f} over {overlap.pairs:,} pairs of minis, {chance} by chance"
    if overlap.chance_deviation:
        words += f" ({(overlap.mean - overlap.chance) / overlap.chance_deviation:+.1f} deviations)"
    return words


def _spread(mean: float, deviation: float) -> str:
    return f"{mean:.3f}±{deviation:.3f}"
