"""One process: accumulated gradients, 16 bits, checkpointed activations, quantised bases."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from melora import MeloraError
from melora.training.adapter import adapter_and_head
from melora.training.device import prepare_checkpointing
from melora.training.evaluate import evaluate
from melora.training.merged import export_merged
from melora.training.prepare import prepare
from melora.training.recipe import Recipe, parse_recipe
from melora.training.run import train


@pytest.fixture
def steady(steady_recipe: dict[str, Any], tmp_path: Path) -> Callable[..., Recipe]:
    """The steady recipe with keys of its sections changed."""

    def make(**changes: dict[str, Any]) -> Recipe:
        sections = {name: {**steady_recipe[name], **values} for name, values in changes.items()}
        return parse_recipe({**steady_recipe, **sections, "output": str(tmp_path / "run")})

    return make


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [event["loss"] for event in map(json.loads, lines) if "loss" in event]


def difference(one: Path, other: Path) -> float:
    first, second = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (one, other))
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_accumulated_gradients_are_those_of_the_larger_batch(steady: Callable[..., Recipe], steady_run: Path) -> None:
    run = train(steady(training={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}))
    assert run.results["batch"] == 8
    assert losses(run.path) == pytest.approx(losses(steady_run), abs=1e-5)
    assert difference(run.path, steady_run) < 1e-4


def test_bf16(steady: Callable[..., Recipe], steady_run: Path) -> None:
    run = train(steady(training={"bf16": True}))
    saved = load_file(run.path / "adapter" / "adapter_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}  # the adapter itself stays in fp32
    assert losses(run.path) != losses(steady_run)
    # bf16 keeps 8 bits of a number: 0.4% of logits that are about 1
    assert losses(run.path)[0] == pytest.approx(losses(steady_run)[0], abs=0.02)
    assert run.results["metrics"]["accuracy"] > 0.8


def gradients(recipe: Recipe, **checkpointing: Any) -> dict[str, torch.Tensor]:
    model = prepare(recipe).model.train()
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=checkpointing)
        prepare_checkpointing(model, checkpointing)
    ids = torch.arange(4, 16).reshape(2, 6)
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([0, 1])).loss.backward()
    return {name: parameter.grad for name, parameter in adapter_and_head(model)[0].items()}


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_activations_give_the_same_gradients(steady: Callable[..., Recipe], reentrant: bool) -> None:
    recipe = steady(adapter={"init_weights": False})  # B is not zero, so A has gradients too
    plain, checkpointed = gradients(recipe), gradients(recipe, use_reentrant=reentrant)
    # The reentrant kind makes its first forward without gradients, where a few tokens take sums in another order.
    tolerance = 1e-5 if reentrant else 0.0
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(checkpointed[name], gradient, rtol=tolerance, atol=tolerance * gradient.abs().max())


def test_a_run_with_checkpointed_activations(steady: Callable[..., Recipe], steady_run: Path) -> None:
    run = train(steady(training={"gradient_checkpointing": True}))
    assert difference(run.path, steady_run) == 0


def test_fp16_with_a_scaler(steady: Callable[..., Recipe]) -> None:
    """The layer in fp16 autocast under PyTorch's scaler: accelerate runs one on GPUs alone."""
    model = prepare(steady(adapter={"init_weights": False})).model
    ids = torch.arange(4, 16).reshape(2, 6)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1])}
    model(**batch).loss.backward()
    adapter = adapter_and_head(model)[0]
    exact = {name: parameter.grad.clone() for name, parameter in adapter.items()}
    model.zero_grad()
    optimizer = torch.optim.SGD(adapter.values(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = model(**batch).loss
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for name, parameter in adapter.items():
        # fp16 keeps 11 bits; a few products in a row lose a few of them
        assert (parameter.grad - exact[name]).norm() < 0.02 * exact[name].norm()
    before = {name: parameter.detach().clone() for name, parameter in adapter.items()}
    scaler.step(optimizer)
    assert all(not torch.equal(before[name], parameter) for name, parameter in adapter.items())


@pytest.mark.usefixtures("unpacked")
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantised_base(steady: Callable[..., Recipe], steady_run: Path, tmp_path: Path, bits: str) -> None:
    recipe = steady(model={"quantization": bits}, training={"gradient_checkpointing": True})
    dry = prepare(recipe, on_meta=True)
    assert dry.new_modules == ["classifier"]
    run = train(recipe)
    whole = json.loads((steady_run / "results.json").read_text())
    assert run.results["parameters"] == whole["parameters"]
    assert run.results["metrics"]["accuracy"] > 0.8
    assert losses(run.path) != losses(steady_run)  # the base is rounded
    assert evaluate(run.path)["metrics"] == run.results["metrics"]
    with pytest.raises(MeloraError, match="is quantised, and merging rounds the adapter's update"):
        export_merged(run.path, tmp_path / "merged")
