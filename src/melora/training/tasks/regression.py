"""Predict a number."""

import math
import warnings
from typing import Any, ClassVar

import numpy as np

from ...errors import MeloraError
from ..data import Split
from .sequence import SequenceTask, finite


class Regression(SequenceTask):
    """One number a row.

    The model learns (label - mean) / deviation of the training labels, so that one learning rate suits any unit of the
    label. Predictions and the reported mse are in the label's own unit again; a loss is in squared deviations.
    """

    name = "regression"
    metric_names: ClassVar[tuple[str, ...]] = ("pearson", "spearman", "mse")
    primary = "pearson"
    loss_unit = "squared standard deviations"

    def __init__(self, mean: float, deviation: float) -> None:
        self.mean, self.deviation = mean, deviation

    @classmethod
    def fit(cls, train: Split) -> "Regression":
        values = np.asarray(_numbers(train))
        deviation = float(values.std())
        if not deviation > 0:
            raise MeloraError(f"{train.path}: every label is {values[0]:g}, so there is nothing to learn from them")
        return cls(float(values.mean()), deviation)

    def state(self) -> dict[str, Any]:
        return {"label_mean": self.mean, "label_deviation": self.deviation}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Regression":
        return cls(float(state["label_mean"]), float(state["label_deviation"]))

    def model_config(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def targets(self, split: Split) -> list[float]:
        return [(value - self.mean) / self.deviation for value in _numbers(split)]

    def metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        from scipy import stats

        predicted, wanted = logits.reshape(-1).astype(np.float64), labels.reshape(-1).astype(np.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            correlations = stats.pearsonr(predicted, wanted), stats.spearmanr(predicted, wanted)
        pearson, spearman = (finite(result.statistic) for result in correlations)
        mse = float(np.mean((predicted - wanted) ** 2)) * self.deviation**2
        return {"pearson": pearson, "spearman": spearman, "mse": mse}

    def predictions(self, logits: np.ndarray) -> dict[str, list[Any]]:
        return {"prediction": (logits.reshape(-1).astype(np.float64) * self.deviation + self.mean).tolist()}

    def prediction_line(self) -> str:
        return f"prediction = logits.item() * {self.deviation!r} + {self.mean!r}  # in the label's own unit"


def _numbers(split: Split) -> list[float]:
    values = []
    for index, label in enumerate(split.labels):
        if isinstance(label, bool) or not isinstance(label, int | float):
            raise MeloraError(
                f"{split.row(index)}: label {label!r} is not a number; regression needs numbers "
                "(task: classification takes names)"
            )
        if not math.isfinite(label):
            raise MeloraError(f"{split.row(index)}: label is {label}; fill it in or remove the row")
        values.append(float(label))
    return values
