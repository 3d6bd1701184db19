import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melora import MeloraError
from melora.training.arguments import check_training, training_arguments
from melora.training.recipe import Recipe
from melora.training.tasks.classification import Classification
from melora.training.tasks.regression import Regression


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ({"learing_rate": 1e-3}, "training: unknown key 'learing_rate'; did you mean learning_rate or"),
        ({"learning_rate": "fast"}, "training.learning_rate: must be of type float, got 'fast'"),
        ({"learning_rate": math.nan}, "training.learning_rate: must be a finite number above 0"),
        ({"learning_rate": 0}, "training.learning_rate: must be a finite number above 0"),
        ({"learning_rate": -1e-3}, "training.learning_rate: must be a finite number above 0"),
        ({"num_train_epochs": math.inf}, "training.num_train_epochs: must be a finite number above 0"),
        (
            {"per_device_train_batch_size": 10**9},
            "training.per_device_train_batch_size: must be a finite number above 0",
        ),
        ({"weight_decay": -1}, "training.weight_decay: must be a finite number, 0 or more"),
        ({"warmup_ratio": 1.5}, "training.warmup_ratio: must be from 0 to below 1"),
        ({"warmup_ratio": 0.1, "warmup_steps": 3}, "training.warmup_ratio: warmup_steps is set too"),
        ({"seed": 1}, "training.seed: use the recipe's top-level key seed"),
        ({"output_dir": "x"}, "training.output_dir: use the recipe's top-level key output"),
    ],
)
def test_what_is_wrong_is_named(training: dict[str, Any], told: str) -> None:
    with pytest.raises(MeloraError) as caught:
        check_training(training, Classification)
    assert str(caught.value).startswith(told)


def test_defaults_keep_the_best_epoch(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    args = training_arguments(make_recipe(training={"warmup_ratio": 0.06}), Regression(0, 1), tmp_path)
    assert args.eval_strategy == args.save_strategy == "epoch"
    assert args.load_best_model_at_end
    assert args.metric_for_best_model == "pearson"
    assert args.warmup_steps == 0.06
    assert args.report_to == []


def test_the_recipe_wins_over_defaults(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    changes = {"eval_strategy": "steps", "eval_steps": 5, "logging_steps": 7}
    args = training_arguments(make_recipe(training=changes, seed=3), Regression(0, 1), tmp_path)
    assert (args.save_strategy, args.save_steps, args.logging_steps, args.seed) == ("steps", 5, 7, 3)


def test_what_transformers_refuses_is_one_line(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(MeloraError, match="training: ") as caught:
        training_arguments(make_recipe(training={"lr_scheduler_type": "lineer"}), Regression(0, 1), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_bare_no_of_yaml_is_no_strategy() -> None:
    assert check_training({"eval_strategy": False}, Classification)["eval_strategy"] == "no"
