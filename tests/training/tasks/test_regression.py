import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from melora import MeloraError
from melora.training.data import Split
from melora.training.tasks import task_class
from melora.training.tasks.regression import Regression


def split(labels: list[Any]) -> Split:
    return Split("train", Path("x.csv"), [("a",)] * len(labels), labels)


def test_labels_are_standardised_and_predictions_are_in_their_unit() -> None:
    task = Regression.fit(split([10.0, 20.0, 30.0]))
    targets = np.asarray(task.targets(split([10.0, 20.0, 30.0])))
    assert targets.mean() == pytest.approx(0)
    assert targets.std() == pytest.approx(1)
    assert task.predictions(targets.reshape(-1, 1))["prediction"] == pytest.approx([10, 20, 30])
    assert Regression.from_state(task.state()).targets(split([7])) == task.targets(split([7]))


def test_scores_against_their_definitions() -> None:
    task = Regression(mean=0.0, deviation=2.0)
    predicted, wanted = np.array([[0.0], [1.0], [2.0], [4.0]]), np.array([0.0, 2.0, 1.0, 5.0])
    scores = task.metrics(predicted, wanted)
    assert scores["pearson"] == pytest.approx(np.corrcoef(predicted[:, 0], wanted)[0, 1])
    assert scores["spearman"] == pytest.approx(0.8)
    assert scores["mse"] == pytest.approx(4 * 3 / 4)
    assert tuple(scores) == task.metric_names


def test_a_constant_prediction_scores_zero() -> None:
    scores = Regression(0.0, 1.0).metrics(np.zeros((3, 1)), np.array([1.0, 2.0, 3.0]))
    assert scores["pearson"] == scores["spearman"] == 0


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([1.0, "x"], "x.csv, row 2: label 'x' is not a number"),
        ([True, 1.0], "x.csv, row 1: label True is not a number"),
        ([1.0, 2.0, math.nan], "x.csv, row 3: label is nan"),
        ([1.0, math.inf], "x.csv, row 2: label is inf"),
        ([3.0, 3.0], "x.csv: every label is 3"),
    ],
)
def test_labels_that_are_no_numbers(labels: list[Any], told: str) -> None:
    with pytest.raises(MeloraError) as caught:
        Regression.fit(split(labels))
    assert str(caught.value).startswith(told)


def test_an_unknown_task_lists_what_there_is() -> None:
    with pytest.raises(MeloraError, match="unknown task 'regresion'; there is classification, regression"):
        task_class("regresion")
