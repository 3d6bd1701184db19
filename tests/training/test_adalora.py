"""AdaLoRA's ranks shrink as its paper has it, are kept over an interruption, and what is saved scores the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraModel
from safetensors.torch import load_file
from transformers import TrainerCallback

from melora import MeloraError
from melora.training.adalora import LATER, without_penalty
from melora.training.evaluate import evaluate, restore
from melora.training.prepare import prepare
from melora.training.recipe import parse_recipe
from melora.training.run import train
from melora.training.trainer import AdapterTrainer

Values = Callable[[str], dict[str, Any]]
# 36 steps: twelve without taking ranks away, twelve in which 16 of 4 modules become 8, twelve with these.
ADAPTER: dict[str, Any] = {
    "method": "adalora", "init_r": 4, "target_r": 2, "tinit": 12, "tfinal": 12, "target_modules": ["query", "value"]
}  # fmt: skip


@pytest.fixture
def values(plain_values: Values) -> dict[str, Any]:
    values = plain_values("head")
    return {**values, "adapter": ADAPTER, "training": {**values["training"], "learning_rate": 0.02}}


def ranks(weights: dict[str, torch.Tensor]) -> list[int]:
    return [value.shape[0] for name, value in weights.items() if name.endswith("lora_E")]


def test_ranks_go_down_to_the_budget_and_the_file_has_no_others(values: dict[str, Any]) -> None:
    done = train(parse_recipe(values))
    assert done.results["steps"] == 36
    saved = load_file(done.path / "adapter" / "adapter_model.safetensors")
    config = json.loads((done.path / "adapter" / "adapter_config.json").read_text())
    assert config["total_step"] == 36
    best = round(done.results["best_epoch"])
    assert sum(ranks(saved)) == {1: 16, 2: 8, 3: 8}[best]
    assert evaluate(done.path)["metrics"] == done.results["metrics"]
    assert evaluate(done.path)["loss"] == pytest.approx(done.results["validation_loss"], rel=1e-5)
    last = load_file(sorted((done.path / "checkpoints").glob("checkpoint-36"))[0] / "adapter_model.safetensors")
    assert ranks(last) == [4] * 4
    assert sum(int((value != 0).sum()) for name, value in last.items() if name.endswith("lora_E")) == 8


class PowerCut(TrainerCallback):
    step = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise RuntimeError("power cut")


@pytest.mark.parametrize("step", [20, 30])  # while ranks are taken away, and after that
def test_an_interrupted_run_goes_on_to_the_same_weights(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: int
) -> None:
    whole = train(parse_recipe({**values, "output": str(tmp_path / "whole")}))
    original = AdapterTrainer.__init__
    PowerCut.step = step

    def init(self: AdapterTrainer, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.add_callback(PowerCut())

    with monkeypatch.context() as patched:
        patched.setattr(AdapterTrainer, "__init__", init)
        with pytest.raises(RuntimeError, match="power cut"):
            train(parse_recipe(values))
    again = train(parse_recipe(values), resume=True)
    one, two = (
        load_file(run.path / "checkpoints" / "checkpoint-36" / "adapter_model.safetensors") for run in (whole, again)
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_penalty_is_no_part_of_a_score(values: dict[str, Any]) -> None:
    prepared = prepare(parse_recipe(values))
    model = prepared.model.eval()
    assert isinstance(model.base_model, AdaLoraModel)
    inputs = {**prepared.tokenizer("a text", return_tensors="pt"), "labels": torch.zeros(1)}
    with torch.no_grad():
        with without_penalty(model):
            bare = model(**inputs).loss
        assert model(**inputs).loss > bare + 0.1
        assert bare == pytest.approx(float(model.get_base_model()(**inputs).loss))


def test_a_schedule_without_room_is_refused(values: dict[str, Any]) -> None:
    prepared = prepare(parse_recipe(values))
    assert prepared.model.peft_config["default"].total_step == LATER
    tight = {**values, "adapter": {**ADAPTER, "tinit": 24}}
    with pytest.raises(MeloraError, match=r"adapter.tinit, adapter.tfinal: 24 and 12 steps leave none of 36"):
        train(parse_recipe(tight))
    assert not list(Path(values["output"]).parent.glob("*.partial"))


def test_a_loaded_adapter_can_be_scored_with_labels(values: dict[str, Any]) -> None:
    done = train(parse_recipe(values))
    restored = restore(done.path)
    model = restored.with_adapter()
    inputs = restored.tokenizer("a text", return_tensors="pt")
    assert torch.isfinite(model(**inputs, labels=torch.zeros(1)).loss)
