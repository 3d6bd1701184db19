from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from melora.training.arguments import training_arguments
from melora.training.prepare import prepare
from melora.training.recipe import Recipe
from melora.training.run import train
from melora.training.trainer import AdapterTrainer, build_trainer


def optimizer_of(recipe: Recipe, folder: Path) -> tuple[Any, dict[int, str]]:
    """(optimiser, names of the parameters by id)."""
    prepared = prepare(recipe)
    args = training_arguments(recipe, prepared.task, folder)
    trainer = build_trainer(
        prepared.task, prepared.tokenizer, model=prepared.model, args=args, train_dataset=prepared.train
    )
    trainer.head_rate_ratio = recipe.head_learning_rate_ratio
    names = {id(parameter): name for name, parameter in prepared.model.named_parameters()}
    return trainer.create_optimizer(), names


def test_the_head_has_its_own_rate_and_all_else_stays(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    training = {"learning_rate": 0.01, "weight_decay": 0.1, "eval_strategy": "no"}
    plain, names = optimizer_of(make_recipe(training=training), tmp_path)
    before = {names[id(p)]: group["weight_decay"] for group in plain.param_groups for p in group["params"]}
    recipe = replace(make_recipe(training=training), head_learning_rate_ratio=0.5)
    optimizer, names = optimizer_of(recipe, tmp_path)
    found = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert {name: group["weight_decay"] for name, group in found.items()} == before
    assert set(before.values()) == {0.1, 0.0}  # decay is still for matrices alone
    rates = {"modules_to_save" in name: group["lr"] for name, group in found.items()}
    assert rates == {False: 0.01, True: 0.005}
    assert optimizer.param_groups[0]["lr"] == 0.01  # the one that the log shows


def test_a_run_with_two_rates_resumes_to_the_same_weights(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(make_recipe(training={"num_train_epochs": 2}), head_learning_rate_ratio=0.1)
    whole = train(replace(recipe, output=str(tmp_path / "whole")))
    assert whole.results["head_learning_rate"] == pytest.approx(whole.results["learning_rate"] / 10)
    step = AdapterTrainer.training_step

    def stop_in_the_second_epoch(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 15:  # of 24; the checkpoint is at 12
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(AdapterTrainer, "training_step", stop_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    monkeypatch.setattr(AdapterTrainer, "training_step", step)
    resumed = train(recipe, resume=True)
    assert resumed.results["resumed"]
    one, other = (load_file(run.path / "adapter" / "adapter_model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(one[key], other[key]) for key in one)
