"""The picture of a run: loss and score over its epochs."""

from pathlib import Path
from typing import Any

from .tasks import Task

_TRAIN, _VALIDATION = "#8a8f98", "#1f6fb4"


def plot_curves(history: list[dict[str, Any]], task: Task, title: str, best_epoch: float, path: Path) -> None:
    """Draw loss (training and validation) beside the primary score, the kept epoch marked.

    Args:
        history: the Trainer's log events.
        task: names the score and the unit of the loss.
        title: a line on what was trained.
        best_epoch: the epoch whose adapter is kept.
        path: the PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(9, 3.6), layout=ConstrainedLayoutEngine(wspace=0.06))
    FigureCanvasAgg(figure)
    loss_axes, score_axes = figure.subplots(1, 2)
    train = [(event["epoch"], event["loss"]) for event in history if "loss" in event]
    validation = [(event["epoch"], event["eval_loss"]) for event in history if "eval_loss" in event]
    scores = [(event["epoch"], event[f"eval_{task.shown}"]) for event in history if "eval_loss" in event]

    if train:
        loss_axes.plot(*zip(*train, strict=True), color=_TRAIN, linewidth=1.2, label="training")
    if validation:
        loss_axes.plot(*zip(*validation, strict=True), color=_VALIDATION, marker="o", label="validation")
        score_axes.plot(*zip(*scores, strict=True), color=_VALIDATION, marker="o")
        best = min(scores, key=lambda point: abs(point[0] - best_epoch))
        last = best[0] > 0.7 * scores[-1][0]
        score_axes.annotate(
            f"kept: {best[1]:.4f}",
            best,
            xytext=(4 if last else -4, -10),
            textcoords="offset points",
            ha="right" if last else "left",
            va="top",
            color=_VALIDATION,
        )
        score_axes.margins(y=0.25)
    if loss_axes.lines:
        loss_axes.legend(frameon=False)
    loss_axes.set_ylabel(f"loss ({task.loss_unit})")
    score_axes.set_ylabel(f"{task.shown} on the validation rows")
    loss_axes.set_ylim(bottom=0)
    for axes in (loss_axes, score_axes):
        axes.set_xlabel("epoch")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    temporary = path.with_name(f".{path.name}.png")
    figure.savefig(temporary, dpi=150)
    temporary.replace(path)
