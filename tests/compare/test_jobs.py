import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melora.compare.jobs import Cell, cells, check_distinct, merged, recipe_hash
from melora.compare.space import RATE
from melora.compare.study import Study, parse_study
from melora.errors import MeloraError


def test_parts_add_up(make_study: Callable[..., Study]) -> None:
    study = make_study()
    job = Cell(study, "rating", "melora").job({RATE: 0.5}, seed=7)
    assert job.recipe.task == "regression"
    assert job.recipe.data.label == "rating"
    assert job.recipe.adapter == {
        "target_modules": ["query", "value"],
        "method": "melora",
        "n": 4,
        "r": 1,
        "lora_alpha": 8,
    }
    assert job.recipe.training["learning_rate"] == 0.5
    assert job.recipe.training["num_train_epochs"] == 2
    assert job.recipe.seed == 7
    assert job.folder == Path(study.output) / job.run
    assert job.score == {"holdout": None}


def test_a_method_may_take_out_a_key_of_the_base(study_values: dict[str, Any]) -> None:
    study_values["methods"]["head"] = {"adapter": {"method": "head", "target_modules": None}}
    assert Cell(parse_study(study_values), "rating", "head").job({RATE: 0.5}, 0).recipe.adapter == {"method": "head"}


def test_merging_leaves_its_inputs_alone() -> None:
    below, above = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": None, "e": 4}, "d": {"f": 5}}
    assert merged(below, above) == {"a": {"c": 2, "e": 4}, "d": {"f": 5}}
    assert below == {"a": {"b": 1, "c": 2}, "d": 3}
    assert above == {"a": {"b": None, "e": 4}, "d": {"f": 5}}


def test_a_hash_names_what_is_run_and_not_where(make_study: Callable[..., Study]) -> None:
    recipe = Cell(make_study(), "rating", "lora").job({RATE: 0.5}, 0).recipe
    name = recipe_hash(recipe)
    assert re.fullmatch("[0-9a-f]{16}", name)
    assert recipe_hash(dataclasses.replace(recipe, output="elsewhere")) == name
    assert recipe_hash(dataclasses.replace(recipe, seed=1)) != name
    assert recipe_hash(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, max_length=8))) != name
    assert recipe_hash(dataclasses.replace(recipe, training={**recipe.training, "learning_rate": 0.25})) != name


def test_a_default_that_is_spelled_out_changes_no_hash(study_values: dict[str, Any]) -> None:
    job = Cell(parse_study(study_values), "rating", "lora").job({RATE: 0.5}, 0)
    study_values["base"]["head_learning_rate_ratio"] = 1
    study_values["base"]["data"]["rows_seed"] = 0
    study_values["base"]["adapter_search"] = {"batches": 8}
    assert Cell(parse_study(study_values), "rating", "lora").job({RATE: 0.5}, 0).run == job.run


def test_hashes_do_not_change_between_versions(make_study: Callable[..., Study]) -> None:
    """A hash that changes makes every finished run of every study unfindable."""
    study = make_study(output="x")
    study.base["model"]["name_or_path"] = "some/model"
    study.base["data"] |= {"train": "train.parquet", "validation": "validation.parquet"}
    assert Cell(study, "rating", "lora").job({RATE: 0.5}, 0).run == "da8e18f2434ca5ee"


def test_the_reference_comes_first_within_each_task(study_values: dict[str, Any]) -> None:
    study_values["tasks"]["mood"] = {"task": "classification", "data": {"label": "mood"}}
    order = [(cell.task, cell.method) for cell in cells(parse_study(study_values))]
    assert order == [("rating", "lora"), ("rating", "melora"), ("mood", "lora"), ("mood", "melora")]


def test_search_and_chosen_share_the_first_seeds_run(make_study: Callable[..., Study]) -> None:
    cell = Cell(make_study(), "rating", "melora")
    searched, chosen = cell.job({RATE: 0.02}, 0), cell.chosen({RATE: 0.02})
    assert [job.seed for job in chosen] == [0, 1]
    assert chosen[0].run == searched.run
    assert chosen[0].text == "rating, melora, learning_rate 0.02, seed 0"


def test_a_study_that_would_repeat_a_run(study_values: dict[str, Any]) -> None:
    study_values["methods"]["again"] = study_values["methods"]["lora"]
    study = parse_study(study_values)
    message = (
        "rating, lora, learning_rate 0.002, seed 0 and rating, again, learning_rate 0.002, seed 0 are the same run"
    )
    with pytest.raises(MeloraError, match=message):
        check_distinct(job for cell in cells(study) for job in [cell.job({RATE: 0.002}, 0)])


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("data", {"holdout": None}, "task rating, method lora: data.holdout: is not set"),
        ("data", {"max_length": -3}, "task rating, method lora: data.max_length"),
        ("model", {"dtype": "float8"}, "task rating, method lora: model.dtype: must be of type"),
    ],
)
def test_parts_that_add_up_to_no_recipe(
    study_values: dict[str, Any], part: str, change: dict[str, Any], message: str
) -> None:
    study_values["base"][part] |= change
    with pytest.raises(MeloraError, match=re.escape(message)):
        Cell(parse_study(study_values), "rating", "lora").job({RATE: 0.5}, 0)


def test_an_unknown_key_of_the_scoring(study_values: dict[str, Any]) -> None:
    study_values["tasks"]["rating"]["score"] = {"rows": 3}
    with pytest.raises(MeloraError, match=r"task rating, method lora: .*rows"):
        Cell(parse_study(study_values), "rating", "lora").job({RATE: 0.5}, 0)


def test_held_out_rows_are_no_untouched_split(study_values: dict[str, Any]) -> None:
    study_values["tasks"]["rating"]["score"] = {"max_length": 8}
    with pytest.raises(
        MeloraError, match=r"tasks\.rating\.score: leaves data\.holdout set.*; put holdout: null into it"
    ):
        Cell(parse_study(study_values), "rating", "lora").job({RATE: 0.5}, 0)


def test_a_hash_tells_how_n_is_chosen(study_values: dict[str, Any]) -> None:
    study_values["methods"]["melora"]["adapter"]["n"] = "auto"
    names = set()
    for search in ({}, {"batches": 4}, {"budget": 2000}):
        study_values["methods"]["melora"]["adapter_search"] = search
        names.add(Cell(parse_study(study_values), "rating", "melora").job({RATE: 0.5}, 0).run)
    assert len(names) == 3
