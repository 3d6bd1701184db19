"""Runs whose adapter starts from weights or gradients: trained, interrupted, scored, exported and inspected."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

from melora import MeloraError, export_lora, inspect_adapter
from melora.training.arguments import training_arguments
from melora.training.evaluate import evaluate, restore
from melora.training.memory import disk_needed
from melora.training.merged import export_merged
from melora.training.prepare import prepare
from melora.training.recipe import Recipe, parse_recipe
from melora.training.run import train

from .test_resumable import At, content, interrupt, train_with

FACTORS = ("A.weight", "A.start", "B.weight", "B.start")


def recipe_of(make_recipe: Callable[..., Recipe], init: str, **training: Any) -> Recipe:
    return make_recipe(
        adapter={"init_weights": init}, training={"num_train_epochs": 1, "learning_rate": 0.01, **training}
    )


def test_a_run_is_trained_scored_exported_and_inspected(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    run = train(recipe_of(make_recipe, "pissa")).path
    results = json.loads((run / "results.json").read_text())
    assert results["parameters"]["adapter"] == 256  # as without a start
    assert evaluate(run)["metrics"] == pytest.approx(results["metrics"], abs=1e-5)
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    for end in FACTORS:
        assert sum(key.endswith(f"melora_{end}") for key in tensors) == 4
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["init_weights"] == "pissa"
    report = inspect_adapter(run / "adapter")
    assert report.parameters == 256
    assert {layer.rank for layer in report.layers} == {8}  # 2 n r, all of it used
    batch = {"input_ids": torch.tensor([[2, 4, 7, 10, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    wanted = restore(run).with_adapter()(**batch).logits
    export_lora(run / "adapter", tmp_path / "lora")
    as_lora = PeftModel.from_pretrained(restore(run).base.model, str(tmp_path / "lora")).eval()
    torch.testing.assert_close(as_lora(**batch).logits, wanted, atol=1e-5, rtol=1e-5)
    merged = export_merged(run, tmp_path / "merged")
    assert merged.drift < 1e-4 * max(1.0, merged.scale)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(plain(**batch).logits, wanted, atol=1e-5, rtol=1e-5)


def test_an_interrupted_run_goes_on_bit_for_bit(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    steps = {"eval_strategy": "steps", "eval_steps": 4}
    whole = train(recipe_of(make_recipe, "lora_ga", **steps)).path
    cut = parse_recipe({**recipe_of(make_recipe, "lora_ga", **steps).to_dict(), "output": str(tmp_path / "cut")})
    with pytest.raises(KeyboardInterrupt):
        train_with(cut, At(6, interrupt))
    assert content(train(cut, resume=True).path) == content(whole)


def test_the_start_of_a_recipe_depends_on_its_seed_alone(make_recipe: Callable[..., Recipe]) -> None:
    def start(seed: int) -> torch.Tensor:
        recipe = parse_recipe({**recipe_of(make_recipe, "lora_ga").to_dict(), "seed": seed})
        parameters = dict(prepare(recipe).model.named_parameters())
        return next(value for name, value in parameters.items() if name.endswith("query.melora_A.default.start"))

    first = start(0)
    torch.manual_seed(5)
    assert torch.equal(start(0), first)
    assert not torch.equal(start(1), first)


def test_a_dry_run_needs_no_gradients_and_counts_the_starts(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    disk = []
    for init in ("lora_ga", "gaussian"):
        recipe = recipe_of(make_recipe, init)
        prepared = prepare(recipe, on_meta=True)
        disk.append(disk_needed(prepared, training_arguments(recipe, prepared.task, tmp_path)))
        starts = [parameter for name, parameter in prepared.model.named_parameters() if name.endswith("start")]
        assert all(parameter.is_meta for parameter in starts)
    assert disk[0] - disk[1] == 4 * 256 * 4  # two checkpoints, the one being written, and the adapter, in fp32


ORDERED = {"permute": "correlation", "mixing": "learned"}


def ordered_recipe(make_recipe: Callable[..., Recipe], **training: Any) -> Recipe:
    return make_recipe(adapter=ORDERED, training={"num_train_epochs": 1, "learning_rate": 0.01, **training})


def test_channels_are_ordered_before_training_and_the_run_resumed_bit_for_bit(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    steps = {"eval_strategy": "steps", "eval_steps": 4}
    whole = train(ordered_recipe(make_recipe, **steps)).path
    cut = parse_recipe({**ordered_recipe(make_recipe, **steps).to_dict(), "output": str(tmp_path / "cut")})
    with pytest.raises(KeyboardInterrupt):
        train_with(cut, At(6, interrupt))
    assert content(train(cut, resume=True).path) == content(whole)
    results = json.loads((whole / "results.json").read_text())
    assert evaluate(whole)["metrics"] == pytest.approx(results["metrics"], abs=1e-5)
    tensors = load_file(whole / "adapter" / "adapter_model.safetensors")
    orders = [value for key, value in tensors.items() if key.endswith("melora_P.weight")]
    assert len(orders) == 4
    assert not any(torch.equal(order, order.sort().values) for order in orders)
    batch = {"input_ids": torch.tensor([[2, 4, 7, 10, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    wanted = restore(whole).with_adapter()(**batch).logits
    export_lora(whole / "adapter", tmp_path / "lora")
    as_lora = PeftModel.from_pretrained(restore(whole).base.model, str(tmp_path / "lora")).eval()
    torch.testing.assert_close(as_lora(**batch).logits, wanted, atol=1e-5, rtol=1e-5)


def test_sharded_layers_can_t_be_ordered(make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(MeloraError, match=r"adapter\.permute: correlation looks at whole layers, which FSDP shards"):
        prepare(ordered_recipe(make_recipe))
