from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from melora import MeloraError
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
    trainer.take_rates(recipe)
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


@pytest.mark.parametrize("ratio", [16.0, 0.125])
@pytest.mark.parametrize("method", ["melora", "lora", "adalora", "gralora"])
def test_b_has_its_own_rate_and_all_else_stays(
    make_recipe: Callable[..., Recipe], tmp_path: Path, method: str, ratio: float
) -> None:
    training = {"learning_rate": 0.01, "weight_decay": 0.1, "eval_strategy": "no"}
    own: dict[str, Any] = {
        "melora": {"bias": "melora_only"},
        "adalora": {"total_step": 40, "init_r": 4, "target_r": 2},
        "gralora": {"r": 4, "gralora_k": 2},
    }.get(method, {"r": 4, "use_dora": True})
    adapter = {"method": method, "target_modules": ["query", "value"], **own}
    made = replace(make_recipe(), adapter=adapter, training={**make_recipe().training, **training})
    plain, names = optimizer_of(made, tmp_path)
    before = {names[id(p)]: group["weight_decay"] for group in plain.param_groups for p in group["params"]}
    optimizer, names = optimizer_of(replace(made, loraplus_lr_ratio=ratio, head_learning_rate_ratio=0.5), tmp_path)
    found = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert {name: group["weight_decay"] for name, group in found.items()} == before
    counts = {"A": 0, "B": 0, "head": 0}
    for name, group in found.items():
        part = "head" if "modules_to_save" in name else "B" if f"{method}_B" in name or "lora_B" in name else "A"
        counts[part] += 1
        assert group["lr"] == pytest.approx(0.01 * {"A": 1.0, "B": ratio, "head": 0.5}[part]), name
    assert counts["B"] >= 4
    assert counts["A"] >= 4
    assert optimizer.param_groups[0]["lr"] == 0.01  # the one that the log shows
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(before)


@pytest.mark.parametrize("decay", [None, 0.1])
def test_a_learned_core_decays_as_a_and_b_do(make_recipe: Callable[..., Recipe], tmp_path: Path, decay: Any) -> None:
    """docs/layers.md warns of it, and says that nothing decays by default."""
    training = {"eval_strategy": "no", **({} if decay is None else {"weight_decay": decay})}
    adapter = {"target_modules": ["query"], "n": 4, "mixing": "learned"}
    optimizer, names = optimizer_of(make_recipe(adapter=adapter, training=training), tmp_path)
    found = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for part in ("melora_A", "melora_B", "melora_C"):
        assert {value for name, value in found.items() if part in name} == {decay or 0.0}


def test_an_embeddings_factors_keep_the_rate(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    adapter = {"target_modules": ["query", "word_embeddings"]}
    recipe = replace(make_recipe(adapter=adapter, training={"eval_strategy": "no"}), loraplus_lr_ratio=4.0)
    optimizer, names = optimizer_of(recipe, tmp_path)
    rates = {names[id(p)]: group["lr"] / 0.02 for group in optimizer.param_groups for p in group["params"]}
    assert {rate for name, rate in rates.items() if "melora_embedding" in name} == {1.0}
    assert {rate for name, rate in rates.items() if ".melora_B." in name} == {4.0}


@pytest.mark.parametrize(
    ("adapter", "method"),
    [
        ({"method": "ia3", "target_modules": ["query"], "feedforward_modules": []}, "ia3"),
        ({"method": "head"}, "head"),
        ({"method": "melora", "n": 4, "target_modules": ["word_embeddings"]}, "melora"),
    ],
)
def test_without_factors_a_ratio_is_an_error(
    make_recipe: Callable[..., Recipe], tmp_path: Path, adapter: dict[str, Any], method: str
) -> None:
    recipe = replace(make_recipe(), adapter=adapter, loraplus_lr_ratio=4.0)
    with pytest.raises(
        MeloraError, match=f"loraplus_lr_ratio: is the rate of B over A's, and adapter.method {method} "
    ):
        train(recipe)
    assert list(tmp_path.iterdir()) == []


def test_a_first_step_moves_b_by_its_rate(make_recipe: Callable[..., Recipe]) -> None:
    """Adam's first step is the learning rate, wherever there is a gradient; A has none while B is zero."""
    training = {"max_steps": 1, "learning_rate": 0.001, "lr_scheduler_type": "constant", "eval_strategy": "no"}
    result = train(replace(make_recipe(training=training), loraplus_lr_ratio=8.0))
    tensors = load_file(result.path / "adapter" / "adapter_model.safetensors")
    moves = torch.cat([tensor.flatten().abs() for name, tensor in tensors.items() if "melora_B" in name])
    assert moves.median() == pytest.approx(0.008, rel=0.02)
    assert "| learning rate | 0.001, of B 0.008 (LoRA+) |" in (result.path / "adapter" / "README.md").read_text()
    assert result.results["loraplus_lr_ratio"] == 8.0


def test_a_run_with_three_rates_resumes_to_the_same_weights(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(
        make_recipe(training={"num_train_epochs": 2}), head_learning_rate_ratio=0.1, loraplus_lr_ratio=0.25
    )
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
