"""The tasks of GLUE (Wang et al., 2019), with the metrics of its leaderboard.

Columns and the names and order of classes are those of the hub's nyu-mll/glue (its glue.py and dataset card, which give
each task's ClassLabel). The test split's labels are hidden (-1), so scores are of the validation split.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import numpy as np

from ...errors import MeloraError
from ..data import Split
from ..dataspec import DataSpec
from ..glue_data import GlueData
from .classification import Classification
from .regression import Regression


def _accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predicted))


def _f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Of class 1 (equivalent, duplicate)."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, pos_label=1, average="binary", zero_division=0.0))


def _matthews(labels: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predicted))


_SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
}


@cache
def _data_section(name: str, columns: tuple[str, ...]) -> type[DataSpec]:
    folder = name.removeprefix("glue/")
    return type(f"GlueData_{folder}", (GlueData,), {"columns": columns, "folder": folder, "__doc__": GlueData.__doc__})


class GlueClassification(Classification):
    """Classes that are known beforehand; a label is a class's number or name.

    Attributes:
        columns: the texts' columns.
        class_names: by their number.
    """

    metric_names: ClassVar[tuple[str, ...]] = ("accuracy",)
    columns: ClassVar[tuple[str, ...]] = ("sentence1", "sentence2")
    class_names: ClassVar[tuple[str, ...]]

    @classmethod
    def data_section(cls) -> type[DataSpec]:
        return _data_section(cls.name, cls.columns)

    @classmethod
    def fit(cls, train: Split) -> "GlueClassification":
        task = cls(list(cls.class_names))
        found = sorted(set(task.targets(train)))
        if len(found) < 2:
            raise MeloraError(
                f"{train.path}: every label is {cls.class_names[found[0]]!r}, so there is nothing to tell apart"
            )
        return task

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "GlueClassification":
        return cls(list(cls.class_names))

    def targets(self, split: Split) -> list[int]:
        numbers: dict[Any, int] = {}
        for number, label in enumerate(self.class_names):
            numbers[number] = numbers[label] = number
        targets = []
        for row, label in enumerate(split.labels):
            if isinstance(label, bool) or label not in numbers:
                known = ", ".join(f"{number} ({name})" for number, name in enumerate(self.class_names))
                raise MeloraError(
                    f"{split.row(row)}: label {label!r} is none of {self.name}'s: {known}{_hidden(label)}"
                )
            targets.append(numbers[label])
        return targets

    def metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        predicted = logits.argmax(axis=-1)
        return {name: _SCORES[name](labels, predicted) for name in self.metric_names}


class Cola(GlueClassification):
    """Is a sentence grammatical?"""

    name = "glue/cola"
    metric_names = ("matthews",)
    primary = "matthews"
    columns = ("sentence",)
    class_names = ("unacceptable", "acceptable")


class Sst2(GlueClassification):
    """Is a film review's sentence positive?"""

    name = "glue/sst2"
    columns = ("sentence",)
    class_names = ("negative", "positive")


class Mrpc(GlueClassification):
    """Do two sentences of the news mean the same?"""

    name = "glue/mrpc"
    metric_names = ("accuracy", "f1")
    class_names = ("not_equivalent", "equivalent")


class Qqp(GlueClassification):
    """Do two questions ask the same?"""

    name = "glue/qqp"
    metric_names = ("accuracy", "f1")
    columns = ("question1", "question2")
    class_names = ("not_duplicate", "duplicate")


class Qnli(GlueClassification):
    """Does a sentence answer a question?"""

    name = "glue/qnli"
    columns = ("question", "sentence")
    class_names = ("entailment", "not_entailment")


class Rte(GlueClassification):
    """Does one text follow from the other?"""

    name = "glue/rte"
    class_names = ("entailment", "not_entailment")


class Wnli(GlueClassification):
    """Does a sentence with its pronoun replaced follow from the original?"""

    name = "glue/wnli"
    class_names = ("not_entailment", "entailment")


class Stsb(Regression):
    """How alike two sentences are, from 0 to 5; learned in standard deviations, as every regression here."""

    name = "glue/stsb"
    metric_names = ("pearson", "spearman")

    @classmethod
    def data_section(cls) -> type[DataSpec]:
        return _data_section(cls.name, ("sentence1", "sentence2"))

    @classmethod
    def fit(cls, train: Split) -> "Stsb":
        learned = super().fit(train)
        return cls(learned.mean, learned.deviation)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Stsb":
        learned = super().from_state(state)
        return cls(learned.mean, learned.deviation)

    def targets(self, split: Split) -> list[float]:
        targets = super().targets(split)
        for row, label in enumerate(split.labels):
            if not 0 <= label <= 5:
                raise MeloraError(f"{split.row(row)}: label {label} is not from 0 to 5{_hidden(label)}")
        return targets

    def metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        scores = super().metrics(logits, labels)
        return {name: scores[name] for name in self.metric_names}


def _hidden(label: Any) -> str:
    return "; GLUE hides the test split's labels, score on the validation split" if label == -1 else ""
