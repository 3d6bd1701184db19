"""What several pictures share: legends, names, logarithmic axes."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from ..text import line
from .palette import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST, LONGEST_BESIDE = 28, 18
_LONGEST_OF_TWO = 16  # in a legend of two columns


def label(name: str, longest: int = LONGEST) -> str:
    """A name that fits above the axes or into a legend; with LONGEST_BESIDE, beside them."""
    text = line(name)
    text = text if len(text) <= longest else text[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return f" {text}" if text.startswith("_") else text  # matplotlib hides what starts so


def new_axes(figure: "Figure", title: str) -> "Axes":
    """One pair of axes with a grid behind what is drawn."""
    axes = figure.add_subplot()
    axes.set_title(label(title), loc="left")
    axes.grid()
    axes.set_axisbelow(True)
    return axes


def method_legend(figure: "Figure", styles: dict[str, Style], *, lines: bool = True) -> None:
    """The methods below the axes, as lines with markers or markers alone; space for it: legend_height."""
    from matplotlib.lines import Line2D

    width = 1.4 if lines else 0
    handles = [Line2D([], [], color=own.colour, marker=own.marker, linewidth=width) for own in styles.values()]
    if handles:
        figure.legend(handles, [label(name) for name in styles], loc="outside lower center", ncols=_columns(styles))


def legend_height(methods: Collection[str]) -> float:
    """Inches that the legend of these methods takes."""
    return 0.19 * math.ceil(len(methods) / _columns(methods))


def _columns(methods: Iterable[str]) -> int:
    """Two where the longest name leaves room for it."""
    return 2 if all(len(label(name)) <= _LONGEST_OF_TWO for name in methods) else 1


def log_limits(values: Iterable[float]) -> tuple[float, float]:
    """Limits of a logarithmic axis with a margin on both sides."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = min(positive), max(positive)
    margin = (high / low) ** 0.08 if high > low else 1.5
    return low / margin, high * margin


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two limits, three or more where they lie apart."""
    from matplotlib.ticker import MaxNLocator

    if high / low < 10:
        return [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    decades = math.log10(high / low)
    within = (1, 2, 5) if decades < 2 else (1, 3) if decades < 3.5 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for power in exponents for tick in (k * 10.0**power for k in within) if low <= tick <= high]


def legible(counts: Mapping[float, int], low: float, high: float, least: float) -> list[float]:
    """Ticks of a logarithmic axis, ascending, that lie `least` of its length or more apart.

    Of two that lie nearer to each other, the one with the higher count stays, then the lower tick.
    """
    length = math.log(high / low)
    kept: list[float] = []
    for tick in sorted(counts, key=lambda tick: (-counts[tick], tick)):
        if all(abs(math.log(tick / other)) / length >= least for other in kept):
            kept.append(tick)
    return sorted(kept)


def set_log_x(axes: "Axes", low: float, high: float, ticks: dict[float, str]) -> None:
    """A logarithmic x axis with these ticks and no others."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
