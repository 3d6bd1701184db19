from collections.abc import Callable
from typing import Any

import pytest
import yaml

from melora import MeloraError
from melora.training.keys import recipe_keys
from melora.training.recipe import Recipe, parse_recipe

SMALLEST: dict[str, Any] = {
    "model": {"name_or_path": "m"},
    "data": {"train": "a.csv", "validation": "b.csv"},
    "output": "runs/x",
}


def test_every_key_but_model_data_and_output_has_a_default() -> None:
    recipe = parse_recipe(SMALLEST)
    assert recipe.task == "classification"
    assert recipe.data.text_columns == ["text"]
    assert recipe.adapter == {"method": "melora"}


def test_the_resolved_recipe_gives_the_same_recipe(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe()
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sed": 1}, "recipe: unknown key 'sed'; did you mean seed?"),
        ({"model": {"name_or_paht": "m"}}, "model: unknown key 'name_or_paht'; did you mean name_or_path?"),
        ({"model": {}}, "recipe: key model.name_or_path is missing"),
        ({"model": None}, "recipe: key 'model' is missing; every recipe needs model, data and output"),
        ({"model": "m"}, "model: must hold keys (a mapping), got 'm'"),
        ({"model": {"name_or_path": " "}}, "model.name_or_path: is empty; give a folder"),
        ({"model": {"name_or_path": "m", "dtype": "int8"}}, "model.dtype: must be of type Literal"),
        ({"data": {"train": "a.csv"}}, "data.validation: is missing; give a file, or data.holdout"),
        ({"loraplus_lr_ratio": -1.0}, "loraplus_lr_ratio: must be a finite number above 0"),
        ({"loraplus_lr_ratio": float("nan")}, "loraplus_lr_ratio: must be a finite number above 0"),
        ({"loraplus_lr_ratio": "16"}, "loraplus_lr_ratio: must be of type float, got '16'"),
        ({"head_learning_rate_ratio": 0}, "head_learning_rate_ratio: must be a finite number above 0"),
        ({"data": {**SMALLEST["data"], "max_length": 0}}, "data.max_length: must be a finite number above 0"),
        (
            {"data": {**SMALLEST["data"], "max_length": 10**9}},
            "data.max_length: must be a finite number above 0 and at",
        ),
        ({"data": {**SMALLEST["data"], "text": []}}, "data.text: must be one column or two different ones"),
        ({"data": {**SMALLEST["data"], "text": ["a", "a"]}}, "data.text: must be one column or two different ones"),
        ({"data": {**SMALLEST["data"], "text": "label"}}, "data.text: must be one column or two different ones"),
        ({"seed": -1}, "seed: must be from 0 to 4294967295, got -1"),
        ({"seed": "one"}, "seed: must be of type int, got 'one'"),
        ({"output": ""}, "output: must name a new folder, got ''"),
        ({"adapter": 3}, "adapter: must be of type dict[str, Any], got 3"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(MeloraError) as caught:
        parse_recipe({**SMALLEST, **change})
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_the_list_of_keys_has_every_key() -> None:
    text = recipe_keys()
    for key in ("name_or_path", "dtype", "max_length", "adapter", "training", "seed", "output", "(required)"):
        assert key in text
