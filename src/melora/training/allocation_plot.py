"""The picture of a choice of n: the effective rank of every module's gradient, and the rank that it was given."""

import re
from pathlib import Path

from ..allocation import Allocation, ModuleAllocation

_MEASURED, _GIVEN = "#8a8f98", "#1f6fb4"
_MOST_NUMBERS = 40  # bars of a panel that still have room for a number each


def plot_allocation(allocation: Allocation, title: str, path: Path) -> None:
    """Draw a panel for each kind of module, with two bars for each layer: effective rank and n * r.

    Args:
        allocation: what was chosen.
        title: a line on what was measured.
        path: the PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = _panels(allocation)
    figure = Figure(figsize=(9, 1.0 + 1.7 * len(panels)), layout=ConstrainedLayoutEngine(hspace=0.06))
    FigureCanvasAgg(figure)
    for axes, (name, modules) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
        places = range(len(modules))
        measured = [m.effective_rank for m in modules]
        bars = axes.bar(places, measured, 0.8, color=_MEASURED, label="effective rank of gradient")
        axes.bar(places, [m.n * m.r for m in modules], 0.5, color=_GIVEN, label="n r of adapter")
        if len(modules) <= _MOST_NUMBERS:
            axes.bar_label(bars, [str(m.n) if m.r == 1 else f"{m.n}x{m.r}" for m in modules], fontsize=8, padding=1)
        step = 1 + (len(modules) - 1) // _MOST_NUMBERS
        axes.set_xticks(places[::step], [_layer(m.name) for m in modules][::step], fontsize=8)
        axes.set_title(name, fontsize=9, loc="left")
        axes.margins(x=0.01, y=0.15)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("layer; the number on a bar is n" + ("" if allocation.budget is None else ", or n x r"))
    figure.axes[0].legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    temporary = path.with_name(f".{path.name}.png")
    figure.savefig(temporary, dpi=150)
    temporary.replace(path)


def _panels(allocation: Allocation) -> dict[str, list[ModuleAllocation]]:
    """The modules by their names without the layer's number."""
    panels: dict[str, list[ModuleAllocation]] = {}
    for module in allocation.modules:
        panels.setdefault(re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", module.name), []).append(module)
    return panels


def _layer(name: str) -> str:
    return ".".join(re.findall(r"(?:^|\.)(\d+)(?=\.|$)", name)) or "-"
