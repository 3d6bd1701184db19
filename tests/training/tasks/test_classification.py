import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from melora import MeloraError
from melora.training.data import Split
from melora.training.tasks.classification import Classification


def split(labels: list[Any]) -> Split:
    return Split("train", Path("x.csv"), [("a",)] * len(labels), labels)


@pytest.mark.parametrize("labels", [["no", "yes", "no"], [0, 1, 0], [0.0, 1.0, 0.0], [2, 7, 2]])
def test_classes_are_the_sorted_training_labels(labels: list[Any]) -> None:
    task = Classification.fit(split(labels))
    assert task.targets(split(labels)) == [0, 1, 0]
    assert Classification.from_state(task.state()).classes == task.classes
    assert task.model_config()["num_labels"] == 2


def test_predictions_are_in_the_datas_own_names() -> None:
    task = Classification(["no", "yes"])
    predicted = task.predictions(np.array([[0.0, math.log(3)], [5.0, 5.0 - math.log(4)]]))
    assert predicted["prediction"] == ["yes", "no"]
    assert predicted["probability"] == pytest.approx([0.75, 0.8])


def test_scores_against_their_definitions() -> None:
    task = Classification([0, 1, 2])
    logits, labels = np.eye(3)[[0, 1, 1, 2]], np.array([0, 1, 2, 2])
    scores = task.metrics(logits, labels)
    assert scores["accuracy"] == 0.75
    assert scores["macro_f1"] == pytest.approx(f1_score(labels, [0, 1, 1, 2], average="macro"))
    assert tuple(scores) == task.metric_names


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, 1, -1], "x.csv, row 3: label -1 is out of range"),
        ([0.0, 0.5], "x.csv, row 2: label 0.5 is not a whole number"),
        ([0.0, math.nan], "x.csv, row 2: label nan is not a whole number"),
        ([0, [1]], "x.csv, row 2: label [1] is neither a whole number nor a name"),
        (["a", 1], "x.csv: labels are partly numbers and partly names"),
        (["a", "a"], "x.csv: every label is 'a'"),
    ],
)
def test_labels_that_are_no_classes(labels: list[Any], told: str) -> None:
    with pytest.raises(MeloraError) as caught:
        Classification.fit(split(labels))
    assert str(caught.value).startswith(told)


def test_a_label_that_training_has_not_is_named_with_its_row() -> None:
    with pytest.raises(MeloraError) as caught:
        Classification(["bad", "good"]).targets(split(["bad", "goood"]))
    assert str(caught.value) == "x.csv, row 2: label 'goood' is none of the 2 training labels; did you mean good?"
