"""Predict one of several classes."""

from typing import Any, ClassVar

import numpy as np

from ...errors import MeloraError
from ..data import Split
from ..schema import nearest
from .sequence import SequenceTask


class Classification(SequenceTask):
    """One class a row; the classes are the training labels, sorted."""

    name = "classification"
    metric_names: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1", "matthews")
    primary = "accuracy"
    loss_unit = "nats per row"

    def __init__(self, classes: list[str] | list[int]) -> None:
        self.classes = classes

    @classmethod
    def fit(cls, train: Split) -> "Classification":
        labels = _labels(train)
        kinds = {type(label) for label in labels}
        if len(kinds) > 1:
            raise MeloraError(f"{train.path}: labels are partly numbers and partly names; use one kind")
        classes = sorted(set(labels))
        if len(classes) < 2:
            raise MeloraError(f"{train.path}: every label is {classes[0]!r}, so there is nothing to tell apart")
        return cls(classes)

    def state(self) -> dict[str, Any]:
        return {"classes": self.classes}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Classification":
        return cls(list(state["classes"]))

    def model_config(self) -> dict[str, Any]:
        names = [str(label) for label in self.classes]
        return {
            "num_labels": len(names),
            "problem_type": "single_label_classification",
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
        }

    def targets(self, split: Split) -> list[int]:
        index_of: dict[Any, int] = {label: index for index, label in enumerate(self.classes)}
        targets = []
        for row, label in enumerate(_labels(split)):
            if label not in index_of:
                raise MeloraError(
                    f"{split.row(row)}: label {label!r} is none of the {len(index_of)} training labels; "
                    f"{nearest(str(label), map(str, self.classes))}"
                )
            targets.append(index_of[label])
        return targets

    def metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        predicted = logits.argmax(axis=-1)
        return {
            "accuracy": float(accuracy_score(labels, predicted)),
            "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
            "matthews": float(matthews_corrcoef(labels, predicted)),
        }

    def predictions(self, logits: np.ndarray) -> dict[str, list[Any]]:
        shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=-1, keepdims=True)
        chosen = logits.argmax(axis=-1)
        return {
            "prediction": [self.classes[index] for index in chosen],
            "probability": probabilities[np.arange(len(chosen)), chosen].tolist(),
        }

    def prediction_line(self) -> str:
        return "prediction = base.config.id2label[logits.argmax().item()]"


def _labels(split: Split) -> list[Any]:
    labels: list[Any] = []
    for index, label in enumerate(split.labels):
        if isinstance(label, float):
            if not label.is_integer():  # NaN and infinity are no integers either
                raise MeloraError(
                    f"{split.row(index)}: label {label} is not a whole number; classification needs classes "
                    "(task: regression takes numbers)"
                )
            label = int(label)
        if not isinstance(label, int | str):
            raise MeloraError(f"{split.row(index)}: label {label!r} is neither a whole number nor a name")
        if isinstance(label, int) and label < 0:
            raise MeloraError(f"{split.row(index)}: label {label} is out of range; classes are 0 or more")
        labels.append(int(label) if isinstance(label, int) else label)
    return labels
