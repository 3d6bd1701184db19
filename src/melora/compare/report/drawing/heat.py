"""Scores over n and r."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..text import number
from .axes import label
from .palette import GROUND, deepening

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_heat(
    figure: "Figure", title: str, scores: Mapping[tuple[int, int], float], *, greater_is_better: bool
) -> None:
    """A cell for each (n, r): its score and its equivalent rank; deeper is better."""
    from matplotlib.patches import Rectangle

    axes = figure.add_subplot()
    axes.set_title(label(title), loc="left")
    ns, rs = sorted({n for n, _ in scores}), sorted({r for _, r in scores})
    low, high = min(scores.values()), max(scores.values())
    for (n, r), score in scores.items():
        share = (score - low) / (high - low) if high > low else 0.0
        fill, ink = deepening(share if greater_is_better else 1 - share)
        x, y = rs.index(r), ns.index(n)
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=fill, edgecolor=GROUND, linewidth=2))
        axes.text(x, y + 0.13, number(score), ha="center", va="center", color=ink, fontsize=9)
        axes.text(x, y - 0.2, f"n r = {n * r}", ha="center", va="center", color=ink, fontsize=7.5)
    axes.set_xlim(-0.5, len(rs) - 0.5)
    axes.set_ylim(-0.5, len(ns) - 0.5)
    axes.set_xticks(range(len(rs)), [str(r) for r in rs])
    axes.set_yticks(range(len(ns)), [str(n) for n in ns])
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlabel("r, rank of one mini")
    axes.set_ylabel("n, number of minis")
