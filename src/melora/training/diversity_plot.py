"""The picture of an adapter's diversity: layer by layer, beside what chance would give."""

from pathlib import Path
from typing import Any

from ..analysis import AdapterReport
from ..diversity import Overlap
from ..errors import MeloraError
from .mini_outputs import OutputLikeness, OutputReport

_MEASURED, _CHANCE = "#1f6fb4", "#8a8f98"
Points = list[tuple[int, float, float, float]]  # layer, value, chance, deviation of chance


def plot_diversity(report: AdapterReport, outputs: OutputReport | None, title: str, path: Path) -> None:
    """Draw what there is of: overlap of row spaces and of column spaces, likeness of outputs, share off the diagonal.

    Each against its chance level, with a band of two standard deviations.

    Args:
        report: the adapter.
        outputs: the same adapter's outputs on a batch, if they were measured.
        title: a line on what was measured.
        path: the PNG to write.

    Raises:
        MeloraError: nothing was measured that could be drawn.
    """
    panels = _panels(report, outputs)
    if not panels:
        raise MeloraError(
            f"--plot {path}: there is nothing to draw: no layer has two minis that are not zero; for a LoRA, give "
            "--blocks N"
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.5 * len(panels), 3.6), layout=ConstrainedLayoutEngine(wspace=0.06))
    FigureCanvasAgg(figure)
    drawn: Any = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (label, chance_label, points) in zip(drawn, panels, strict=True):
        x, values, chance, deviations = (list(column) for column in zip(*points, strict=True))
        low, high = ([c + sign * 2 * d for c, d in zip(chance, deviations, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=_CHANCE, alpha=0.25, linewidth=0)
        axes.plot(x, chance, color=_CHANCE, linewidth=1.2, label=chance_label)
        axes.plot(x, values, color=_MEASURED, marker="o", markersize=4, linewidth=1.2, label="this adapter")
        axes.set_xlabel("module, in the order of the table")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.png")
    figure.savefig(temporary, dpi=150)
    temporary.replace(path)


def _panels(report: AdapterReport, outputs: OutputReport | None) -> list[tuple[str, str, Points]]:
    """(what is measured, what chance is, its points) of every panel that has a point."""
    rows: Points = []
    columns: Points = []
    likeness: Points = []
    outside: Points = []
    for number, layer in enumerate(report.layers, start=1):
        _add_overlap(rows, number, layer.row_overlap)
        _add_overlap(columns, number, layer.column_overlap)
        _add_likeness(likeness, number, None if outputs is None else outputs.layers.get(layer.name))
        if layer.off_diagonal is not None:
            outside.append((number, layer.off_diagonal, 1 - 1 / layer.blocks, 0.0))
    if report.method == "MELORA" and not any(share for _, share, _, _ in outside):
        outside = []  # 0 by construction
    panels = [
        ("overlap of the row spaces of A", "random subspaces", rows),
        ("overlap of the column spaces of B", "random subspaces", columns),
        ("linear CKA of the minis' outputs", "untrained A", likeness),
        ("share of ||dW||² off the diagonal blocks", "no preference", outside),
    ]
    return [panel for panel in panels if panel[2]]


def _add_overlap(points: Points, number: int, overlap: Overlap | None) -> None:
    if overlap is not None:
        points.append((number, overlap.mean, overlap.chance, overlap.chance_deviation))


def _add_likeness(points: Points, number: int, likeness: OutputLikeness | None) -> None:
    if likeness is not None:
        points.append((number, likeness.trained, likeness.random, likeness.random_deviation))
