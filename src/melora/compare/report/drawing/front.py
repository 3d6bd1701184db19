"""Score against trainable parameters, with the Pareto front."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...statistics_interval import Interval
from ..text import short_count
from .axes import log_limits, log_ticks, method_legend, new_axes, set_log_x
from .palette import GROUND, MUTED, Style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Dot:
    """A method's place in the picture."""

    method: str
    parameters: float
    interval: Interval


def draw_front(
    figure: "Figure", title: str, dots: Sequence[Dot], front: Sequence[int], styles: dict[str, Style], ylabel: str
) -> None:
    """Dots with their intervals; those on the front are ringed and joined by steps."""
    axes = new_axes(figure, title)
    low, high = log_limits(dot.parameters for dot in dots)
    ticks = {tick: short_count(tick) for tick in log_ticks(low, high)}
    nothing = low / (high / low) ** 0.15
    if any(dot.parameters <= 0 for dot in dots):  # 0 has no place on a logarithmic axis: it gets one at the left
        low, ticks = nothing / (high / low) ** 0.08, {nothing: "0"} | ticks
    at = [dot.parameters if dot.parameters > 0 else nothing for dot in dots]
    means = [dot.interval.mean for dot in dots]
    axes.step([at[i] for i in front], [means[i] for i in front], where="post", color=MUTED, linewidth=1, linestyle="--")
    axes.plot(
        [at[i] for i in front],
        [means[i] for i in front],
        linestyle="none",
        marker="o",
        markersize=13,
        markerfacecolor="none",
        markeredgecolor=MUTED,
    )
    for dot, x in zip(dots, at, strict=True):
        own, interval = styles[dot.method], dot.interval
        if interval.low is not None and interval.high is not None:
            axes.vlines(x, interval.low, interval.high, color=own.colour, linewidth=1.4)
        axes.plot(
            x,
            interval.mean,
            linestyle="none",
            marker=own.marker,
            color=own.colour,
            markersize=8,
            markeredgewidth=0.5,
            markeredgecolor=GROUND,
        )
    set_log_x(axes, low, high, ticks)
    axes.margins(y=0.12)
    axes.set_xlabel("trainable parameters, head included (log scale)")
    axes.set_ylabel(ylabel)
    method_legend(figure, {dot.method: styles[dot.method] for dot in dots}, lines=False)
