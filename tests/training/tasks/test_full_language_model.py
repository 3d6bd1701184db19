"""Language models trained without an adapter."""

from typing import Any

import pytest

from melora import MeloraError
from melora.training.benchmarks.score import Options, score
from melora.training.evaluate import evaluate, restore
from melora.training.recipe import parse_recipe
from melora.training.run import train
from melora.training.timed import time_step


def test_every_weight_of_a_language_model(instruct_values: dict[str, Any]) -> None:
    instruct_values["training"] |= {"learning_rate": 0.005, "num_train_epochs": 1}
    done = train(parse_recipe({**instruct_values, "adapter": {"method": "full"}}))
    assert done.results["parameters"]["base"] == 0
    assert done.results["parameters"]["head"] == 0
    assert evaluate(done.path)["metrics"] == pytest.approx(done.results["metrics"], rel=1e-6)
    with pytest.raises(MeloraError, match=r"--baseline: .* trained the base model.s own weights"):
        score(restore(done.path), Options(("mmlu",), None, baseline=True), [])


def test_a_language_model_has_no_new_head_to_train(instruct_values: dict[str, Any]) -> None:
    recipe = parse_recipe({**instruct_values, "adapter": {"method": "head"}})
    with pytest.raises(MeloraError, match=r"adapter\.method head: the model has no new module"):
        train(recipe)


def test_a_step_of_a_language_model_can_be_timed(instruct_values: dict[str, Any]) -> None:
    found = time_step(parse_recipe(instruct_values))
    assert found.step_seconds > 0
    assert found.evaluation_seconds > 0
    assert (found.steps, found.evaluation_batches) == (12, 1)  # 48 rows by 8, two epochs; 8 by 8
