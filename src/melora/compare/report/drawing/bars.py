"""Time and memory as bars, a method a line."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .axes import LONGEST_BESIDE, label
from .palette import Style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Bars:
    """One measure of several methods: method -> value in the unit that the label names."""

    label: str
    values: Mapping[str, float]
    shown: Mapping[str, str]


def draw_bars(figure: "Figure", title: str, measures: list[Bars], styles: dict[str, Style]) -> None:
    """Bars from 0 for each measure, one measure above the other, each value written at its bar."""
    figure.suptitle(label(title), x=0.02, ha="left", fontsize=10)
    for axes, bars in zip(figure.subplots(len(measures), 1, squeeze=False)[:, 0], measures, strict=True):
        methods = list(bars.values)
        axes.barh(
            range(len(methods)),
            list(bars.values.values()),
            color=[styles[method].colour for method in methods],
            height=0.7,
        )
        top = max(bars.values.values()) or 1.0
        for i, method in enumerate(methods):
            axes.text(bars.values[method] + 0.015 * top, i, bars.shown[method], va="center", fontsize=8)
        axes.set_yticks(range(len(methods)), [label(method, LONGEST_BESIDE) for method in methods])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.28 * top)  # room for the values
        axes.set_xlabel(bars.label)
