from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melora.training.arguments import training_arguments
from melora.training.plan import count_parameters, count_steps, plan_modules
from melora.training.prepare import prepare
from melora.training.recipe import Recipe, parse_recipe
from melora.training.tasks.regression import Regression

LORA: dict[str, Any] = {"method": "lora", "r": 2, "target_modules": ["query"]}


@pytest.mark.parametrize(
    ("adapter", "n", "r", "parameters", "lora"),
    [({"n": 4, "target_modules": ["query"]}, 4, 1, 128, 512), (LORA, None, 2, 256, 256)],
)
def test_modules_and_counts(
    make_recipe: Callable[..., Recipe], adapter: dict[str, Any], n: int | None, r: int, parameters: int, lora: int
) -> None:
    prepared = prepare(parse_recipe({**make_recipe().to_dict(), "adapter": adapter}), on_meta=True)
    first, second = plan_modules(prepared.model)
    assert (first.name, second.name) == tuple(f"bert.encoder.layer.{i}.attention.self.query" for i in (0, 1))
    assert (first.d_in, first.d_out, first.n, first.r) == (32, 32, n, r)
    counts = count_parameters(prepared.model)
    assert (counts.adapter, counts.lora, counts.head) == (parameters, lora, 33)


def test_methods_without_a_rank_have_no_lora_of_equal_rank(make_recipe: Callable[..., Recipe]) -> None:
    adapter = {"method": "ia3", "target_modules": ["query"], "feedforward_modules": []}
    prepared = prepare(parse_recipe({**make_recipe().to_dict(), "adapter": adapter}))
    assert count_parameters(prepared.model).lora is None


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({"per_device_train_batch_size": 8, "num_train_epochs": 3}, 39),
        ({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "num_train_epochs": 1}, 4),
        ({"max_steps": 7}, 7),
    ],
)
def test_steps(make_recipe: Callable[..., Recipe], tmp_path: Path, training: dict[str, Any], steps: int) -> None:
    assert count_steps(training_arguments(make_recipe(training=training), Regression(0, 1), tmp_path), 100) == steps
