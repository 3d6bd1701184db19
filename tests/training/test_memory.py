from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melora.training.arguments import training_arguments
from melora.training.memory import disk_needed, estimate_memory, free_disk
from melora.training.plan import count_parameters
from melora.training.prepare import prepare
from melora.training.recipe import Recipe


def estimate(recipe: Recipe, folder: Path) -> dict[str, int]:
    prepared = prepare(recipe, on_meta=True)
    return estimate_memory(prepared, training_arguments(recipe, prepared.task, folder))


def test_the_estimate_adds_up(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_recipe()
    found = estimate(recipe, tmp_path)
    counts = count_parameters(prepare(recipe, on_meta=True).model)
    assert found["optimiser"] == 12 * (counts.adapter + counts.head)
    assert found["weights"] > 4 * (counts.adapter + counts.head + counts.base)
    total = found.pop("total")
    assert total == sum(found.values()) - min(found["training"], found["validation"])


@pytest.mark.parametrize("training", [{"per_device_train_batch_size": 16}, {"activation_checkpointing": True}])
def test_a_step_takes_more_with_rows_and_less_with_checkpointing(
    make_recipe: Callable[..., Recipe], tmp_path: Path, training: dict[str, Any]
) -> None:
    plain = estimate(make_recipe(), tmp_path)["training"]
    changed = estimate(make_recipe(training=training), tmp_path)["training"]
    if "activation_checkpointing" in training:
        assert changed < 0.9 * plain
    else:
        assert 1.8 * plain < changed < 2.2 * plain


def test_disk_is_that_of_a_folder_to_be(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_recipe()
    prepared = prepare(recipe, on_meta=True)
    counts = count_parameters(prepared.model)
    needed = disk_needed(prepared, training_arguments(recipe, prepared.task, tmp_path))
    assert needed > 10 * 4 * (counts.adapter + counts.head)
    assert free_disk(tmp_path / "not" / "there") == pytest.approx(free_disk(tmp_path), rel=0.1)
