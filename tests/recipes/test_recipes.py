"""Every recipe in recipes/ is right in all that can be checked without its data and model."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from melora.training.adapter import adapter_config
from melora.training.arguments import check_training
from melora.training.places import is_at_hand
from melora.training.prepare import prepare
from melora.training.recipe import load_recipe
from melora.training.tasks import task_class

ROOT = Path(__file__).parents[2]
# recipes/distributed holds accelerate's own configuration files.
RECIPES = sorted(file for file in (ROOT / "recipes").rglob("*.yaml") if "distributed" not in file.parts)
# From PAPER.md: epochs, batch, max_length, learning rate, first metric.
REFERENCE = {
    "mnli": (30, 128, 256, 5e-4, "accuracy"),
    "mrpc": (30, 128, 256, 4e-4, "accuracy"),
    "qnli": (25, 128, 256, 4e-4, "accuracy"),
    "qqp": (25, 128, 256, 4e-4, "accuracy"),
    "rte": (80, 128, 512, 4e-4, "accuracy"),
    "sst2": (60, 128, 256, 5e-4, "accuracy"),
    "stsb": (40, 128, 256, 4e-4, "pearson"),
    "cola": (80, 64, 256, 4e-4, "matthews"),
}


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: str(file.relative_to(ROOT / "recipes")))
def test_the_recipe_is_right(file: Path) -> None:
    recipe = load_recipe(file)
    task = task_class(recipe.task)
    adapter_config(recipe.adapter, task.peft_type)
    check_training(recipe.training, task)
    outputs = [load_recipe(other).output for other in RECIPES]
    assert outputs.count(recipe.output) == 1, "two recipes write to the same folder"


def test_every_task_has_the_references_settings() -> None:
    files = {file.stem: file for file in RECIPES if file.parent.name == "roberta-base"}
    assert files.keys() == REFERENCE.keys()
    for name, file in files.items():
        recipe = load_recipe(file)
        training, data = recipe.training, recipe.data
        found = (
            training["num_train_epochs"],
            training["per_device_train_batch_size"],
            data.max_length,
            training["learning_rate"],
            task_class(recipe.task).primary,
        )
        assert found == REFERENCE[name]
        assert (training["weight_decay"], training["warmup_ratio"], training["lr_scheduler_type"]) == (
            0.01,
            0.06,
            "linear",
        )
        assert (recipe.head_learning_rate_ratio, recipe.seed, data.path) == (0.5, 42, "nyu-mll/glue")
        adapter = {"method": "melora", "r": 8, "n": 2, "lora_alpha": 16, "lora_dropout": 0.05}
        assert recipe.adapter == {**adapter, "target_modules": ["query", "value"]}


def test_each_small_recipe_differs_from_its_lora_in_the_adapter_and_its_rate_alone() -> None:
    pairs = [file for file in RECIPES if file.parent.name == "minilm" and not file.stem.endswith("-lora")]
    assert {file.stem for file in pairs} == {"cola", "mrpc", "rte", "sst2", "stsb"}
    for file in pairs:
        melora, lora = (yaml.safe_load(path.read_text()) for path in (file, file.with_stem(f"{file.stem}-lora")))
        for values in (melora, lora):
            for section, key in (("training", "learning_rate"), ("adapter", None)):
                values[section].pop(key, None) if key else values.pop(section)
            values["output"] = values["output"].removesuffix("-lora")
        assert melora == lora


@pytest.mark.parametrize("name", ["cola", "mrpc-lora", "stsb"])
def test_small_recipes_prepare_on_real_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(ROOT / "recipes" / "glue" / "minilm" / f"{name}.yaml", ["data.max_train_rows=100"])
    if importlib.util.find_spec(recipe.model.name_or_path) is None:
        pytest.skip(f"no package {recipe.model.name_or_path}")
    if not is_at_hand(recipe.data):
        pytest.skip(f"no GLUE data in {recipe.data.path}")
    prepared = prepare(recipe, on_meta=True)
    assert len(prepared.train) == 100
