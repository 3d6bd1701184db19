"""Lines of methods: validation score against learning rate, and training curves."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..text import rate
from .axes import legible, log_limits, method_legend, new_axes, set_log_x
from .palette import GROUND, Style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The shares of the axis that its labels take at the report's width and font size: turned by 60 degrees, and upright.
_APART, _UPRIGHT_APART = 0.055, 0.16

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Sensitivity:
    """A method's validation score at each learning rate.

    Attributes:
        scores: (learning rate, score), finite, by ascending rate.
        chosen: the rate that the search chose; None where none is known.
        failed: rates at which no run gave a score and one or more failed.
    """

    scores: Points
    chosen: float | None
    failed: Sequence[float]


def draw_rates(
    figure: "Figure", title: str, lines: Mapping[str, Sensitivity], styles: dict[str, Style], ylabel: str
) -> None:
    """A line for each method; the chosen rate is ringed, a rate that only failed has a cross at the bottom."""
    axes = new_axes(figure, title)
    tried = Counter(value for own in lines.values() for value in (*(x for x, _ in own.scores), *own.failed))
    for method, own in lines.items():
        drawn = styles[method]
        axes.plot(
            [x for x, _ in own.scores],
            [y for _, y in own.scores],
            color=drawn.colour,
            marker=drawn.marker,
            markersize=5,
            linewidth=1.4,
        )
        chosen = [(x, y) for x, y in own.scores if x == own.chosen]
        if chosen:
            axes.plot(*chosen[0], marker="o", markersize=13, markerfacecolor="none", color=drawn.colour)
        axes.plot(
            own.failed,
            [0.03] * len(own.failed),
            transform=axes.get_xaxis_transform(),
            linestyle="none",
            marker="x",
            color=drawn.colour,
        )
    axes.margins(y=0.12)
    low, high = log_limits(tried)
    ticks = legible(tried, low, high, _APART)
    set_log_x(axes, low, high, {value: rate(value) for value in ticks})
    axes.tick_params(axis="x", rotation=0 if ticks == legible(tried, low, high, _UPRIGHT_APART) else 60)
    axes.set_xlabel("learning rate (log scale)")
    axes.set_ylabel(ylabel)
    method_legend(figure, {method: styles[method] for method in lines})


@dataclass(frozen=True)
class Curve:
    """A method's training curve.

    Attributes:
        mean: (epoch, mean over seeds) where all seeds have a value.
        seeds: each seed's own curve, when they are to be drawn too.
    """

    mean: Points
    seeds: Sequence[Points] = ()


def draw_curves(
    figure: "Figure", title: str, curves: Mapping[str, Curve], styles: dict[str, Style], ylabel: str
) -> None:
    """A line for each method, over thin ones for its seeds."""
    from matplotlib.ticker import MaxNLocator

    axes = new_axes(figure, title)
    for method, curve in curves.items():
        drawn = styles[method]
        for points in curve.seeds:
            axes.plot([x for x, _ in points], [y for _, y in points], color=drawn.colour, linewidth=0.7, alpha=0.35)
        marker = drawn.marker if len(curve.mean) <= 30 else None
        axes.plot(
            [x for x, _ in curve.mean],
            [y for _, y in curve.mean],
            color=drawn.colour,
            marker=marker,
            markersize=5,
            markeredgecolor=GROUND,
            markeredgewidth=0.5,
            linewidth=1.4,
        )
    axes.margins(y=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_xlabel("epoch")
    axes.set_ylabel(ylabel)
    method_legend(figure, {method: styles[method] for method in curves})
