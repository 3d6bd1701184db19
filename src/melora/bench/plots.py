"""Plots of result rows: added time as bars, or lines where a suite varies one size."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .markdown import split
from .peers import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = list[dict[str, str]]
COLOURS = {
    "base": "#8a8a8a",
    "plain": "#8a8a8a",
    "melora": "#1f6fb4",
    "learned": "#63a4d8",
    "shuffle": "#16456e",
    "lora": "#d9822b",
    "gralora": "#4c9f50",
    "bdlora": "#b5493f",
    "vera": "#8064a2",
    "miss": "#3aa6a6",
    "loop": "#7a6a53",
    "einsum": "#c06ba5",
    "dense": "#5b5b8c",
}
_LINES = {"n": "n", "layers": "layers", "tokens": "tokens"}
_COLUMNS = 3


def plot(rows: Iterable[Mapping[str, str]], folder: Path) -> list[str]:
    """Write SUITE.png for each suite whose rows have times; returns the names. Replaces plots of fewer rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = []
    for (suite,), of_suite in split(rows, ("suite",)).items():
        timed = [row for row in of_suite if row["ms_p50"]]
        panels = split(timed, ("case", "d_in", "d_out", "dtype") if suite == "scaling" else ("case", "title"))
        if not panels:
            continue
        columns = min(_COLUMNS, len(panels))
        lines = math.ceil(len(panels) / columns)
        figure, axes = pyplot.subplots(
            lines, columns, figsize=(5.2 * columns, 3.6 * lines), squeeze=False, layout="constrained"
        )
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis, panel in zip(axes.flat, panels.values(), strict=False):
            _panel(suite, axis, panel)
        temporary = folder / f".{suite}.tmp.png"
        figure.savefig(temporary, dpi=110)
        pyplot.close(figure)
        temporary.replace(folder / f"{suite}.png")
        names.append(f"{suite}.png")
    return names


def _panel(suite: str, axis: "Axes", rows: Rows) -> None:
    if suite == "scaling":
        _lines(axis, rows, _LINES[rows[0]["case"]])
    elif suite == "multi":
        _lines(axis, rows, "adapters")
    else:
        _bars(axis, rows)


def _bars(axis: "Axes", rows: Rows) -> None:
    """Time over the first contestant's, median, with a whisker from the 20th to the 80th percentile."""
    shown = rows[::-1]
    middle = [float(row["ratio_p50"]) for row in shown]
    low = [value - float(row["ratio_p20"]) for value, row in zip(middle, shown, strict=True)]
    high = [float(row["ratio_p80"]) - value for value, row in zip(middle, shown, strict=True)]
    axis.barh(
        range(len(shown)),
        middle,
        xerr=([max(0.0, v) for v in low], [max(0.0, v) for v in high]),
        color=[COLOURS[row["contestant"]] for row in shown],
        error_kw={"ecolor": "#333333", "elinewidth": 1},
    )
    axis.set_yticks(range(len(shown)), [row["label"] for row in shown], fontsize=8)
    axis.axvline(1.0, color="#333333", linewidth=0.8, linestyle=":")
    axis.set_title(rows[0]["title"], fontsize=9)
    axis.set_xlabel(f"time over {rows[0]['label']}", fontsize=8)


def _lines(axis: "Axes", rows: Rows, size: str) -> None:
    """Time against a size, a line for each method (for n: LoRA of rank n * r stands at n)."""
    r = next(int(row["r"]) for row in rows if row["contestant"] == "melora")
    same = ("contestant",) if size in ("n", "adapters") else ("contestant", "rank")
    for (method, *_), own in split(rows, same).items():
        if method == "base" and size in ("n", "adapters"):
            axis.axhline(float(own[0]["ms_p50"]), color=COLOURS[method], linestyle=":", label="frozen base")
            continue
        at = [int(row["rank"]) // r if size == "n" else int(row[size]) for row in own]
        points = sorted(zip(at, (float(row["ms_p50"]) for row in own), strict=True))
        name = METHODS[method] if size == "n" else own[0]["label"]
        axis.plot(*zip(*points, strict=True), marker="o", markersize=4, color=COLOURS[method], label=name)
    ticks = sorted({int(row[size]) for row in rows if row["contestant"] == "melora"})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    if size in ("layers", "tokens"):
        axis.set_yscale("log", base=2)  # linear growth is a straight line of slope one
    elif size == "n":
        axis.set_ylim(bottom=0)
    else:
        axis.set_yscale("log")
    axis.set_xlabel("n, at fixed r (LoRA: of rank n r)" if size == "n" else size, fontsize=8)
    axis.set_ylabel("ms", fontsize=8)
    axis.set_title(f"{rows[0]['case']}: {rows[0]['d_in']} -> {rows[0]['d_out']}, {rows[0]['dtype']}", fontsize=9)
    axis.legend(fontsize=7)
