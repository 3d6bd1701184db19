"""Runs of the methods that train without an adapter, from recipe to export."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, TrainerCallback

from melora import MeloraError
from melora.conversion import export_lora
from melora.training.evaluate import evaluate, restore
from melora.training.failures import TrainingError
from melora.training.merged import export_merged
from melora.training.plan import count_parameters, plan_modules
from melora.training.prepare import prepare
from melora.training.recipe import parse_recipe
from melora.training.run import train
from melora.training.trainer import AdapterTrainer

METHODS = ("head", "bias", "full")
Values = Callable[[str], dict[str, Any]]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


@pytest.fixture
def run(plain_runs: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of the finished run of the method that the test is parametrised with."""
    return shutil.copytree(plain_runs[request.param], tmp_path / "copy")


def test_counts_and_plan(plain_values: Values, tiny_model: Path) -> None:
    base = AutoModel.from_pretrained(tiny_model)
    size = base.num_parameters()
    biases = sum(value.numel() for name, value in base.named_parameters() if name.endswith("bias"))
    for method, trained in zip(METHODS, (0, biases, size), strict=True):
        model = prepare(parse_recipe(plain_values(method)), on_meta=True).model
        counts = count_parameters(model)
        assert (counts.adapter, counts.head, counts.base, counts.lora) == (trained, 33, size - trained, None)
        plans = {plan.name: plan for plan in plan_modules(model)}
        assert sum(plan.parameters for plan in plans.values()) == trained
        if method != "head":
            query = plans["bert.encoder.layer.0.attention.self.query"]
            assert (query.d_in, query.d_out, query.n, query.equivalent_rank) == (32, 32, None, None)
            assert plans["bert.embeddings.LayerNorm"].parameters == (32 if method == "bias" else 64)


@pytest.mark.parametrize("run", METHODS, indirect=True)
def test_a_run_learns_is_saved_and_scores_the_same_again(run: Path, tiny_model: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [event["eval_loss"] for event in events if "eval_loss" in event]
    assert len(losses) == 4  # of three epochs, and at last of the best one again
    kind = json.loads((run / "adapter" / "adapter_config.json").read_text())["peft_type"]
    if kind != "HEAD":  # what a random frozen model says of a text tells a head next to nothing
        assert losses[2] < losses[0], losses
    assert evaluate(run)["metrics"] == results["metrics"]
    saved = weights(run)
    counts = results["parameters"]
    assert sum(value.numel() for value in saved.values()) == counts["adapter"] + counts["head"]
    base = AutoModel.from_pretrained(tiny_model).state_dict()
    for name, value in saved.items():
        if "classifier" not in name and "key.bias" not in name:
            assert not torch.equal(value, base[name.removeprefix("base_model.model.bert.")]), name
    checkpoints = list((run / "checkpoints").glob("*/adapter_model.safetensors"))
    assert checkpoints
    assert all(load_file(file).keys() == saved.keys() for file in checkpoints)


class PowerCut(TrainerCallback):
    """Ends training with an error after a step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 20:  # of 36; the first of three checkpoints is at 12
            raise RuntimeError("power cut")


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_goes_on_to_the_same_weights(
    plain_values: Values, plain_runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    recipe, original = parse_recipe(plain_values(method)), AdapterTrainer.__init__

    def init(self: AdapterTrainer, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.add_callback(PowerCut())

    with monkeypatch.context() as patched:
        patched.setattr(AdapterTrainer, "__init__", init)
        with pytest.raises(RuntimeError, match="power cut"):
            train(recipe)
    resumed = train(recipe, resume=True)
    assert resumed.results["resumed"]
    whole, again = weights(plain_runs[method]), weights(resumed.path)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_moves_nothing_is_a_failure(plain_values: Values, method: str) -> None:
    values = plain_values(method)
    values["training"] |= {"max_steps": 1, "warmup_steps": 5}  # the rate of the first warm-up step is 0
    with pytest.raises(
        TrainingError, match="no adapter weight changed in training: no step had a learning rate above 0"
    ):
        train(parse_recipe(values))


@pytest.mark.parametrize("run", ["bias"], indirect=True)
def test_a_saved_file_that_does_not_fit_is_refused(run: Path) -> None:
    file, saved = run / "adapter" / "adapter_model.safetensors", weights(run)
    name = next(name for name in saved if "query" in name)
    for damaged, told in (
        ({key: value for key, value in saved.items() if key != name}, "1 missing tensor"),
        ({**saved, name: saved[name][:-1].clone()}, "1 mis-shaped tensor"),
        ({**saved, f"{name}.more": saved[name].clone()}, "1 unexpected tensor"),
    ):
        save_file(damaged, file)
        with pytest.raises(MeloraError, match=told) as caught:
            restore(run).with_adapter()
        assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(MeloraError, match=r"no adapter_model\.safetensors in it"):
        restore(run).with_adapter()


def test_other_methods_of_peft_score_the_same_again(plain_values: Values) -> None:
    adapter = {"method": "ia3", "target_modules": ["query"], "feedforward_modules": []}
    done = train(parse_recipe({**plain_values("head"), "adapter": adapter}))
    assert evaluate(done.path)["metrics"] == done.results["metrics"]
    saved = weights(done.path)
    rest = {name: value for name, value in saved.items() if "layer.0" not in name}
    save_file(rest, done.path / "adapter" / "adapter_model.safetensors")
    told = "can't be loaded into BertForSequenceClassification: Found missing adapter keys"
    with pytest.raises(MeloraError, match=told):
        restore(done.path).with_adapter()


@pytest.mark.parametrize("run", METHODS, indirect=True)
def test_a_merged_export_needs_no_peft(run: Path, tmp_path: Path) -> None:
    merged = export_merged(run, tmp_path / "merged")
    assert merged.drift == 0.0
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    restored = restore(run)
    inputs = restored.tokenizer("the film is great", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(plain(**inputs).logits, restored.with_adapter()(**inputs).logits)
    with pytest.raises(MeloraError, match=r"peft_type is '(HEAD|BIAS|FULL)'; melora reads MELORA and LORA adapters"):
        export_lora(run / "adapter", tmp_path / "lora")


@pytest.mark.parametrize("run", ["full"], indirect=True)
def test_the_cards_lines_reload_what_was_trained(run: Path) -> None:
    card = (run / "adapter" / "README.md").read_text()
    assert "KeyError: 'FULL'" in card
    assert "| alpha |" not in card
    code = card.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace('adapter = "adapter"', f"adapter = {str(run / 'adapter')!r}"), names)
    restored = restore(run)
    with torch.no_grad():
        logits = restored.with_adapter()(**restored.tokenizer("a text", return_tensors="pt")).logits
    assert torch.equal(names["logits"], logits)


@pytest.mark.parametrize("method", METHODS)
def test_the_heads_rate_and_activation_checkpointing_go_together(plain_values: Values, method: str) -> None:
    values = plain_values(method)
    values["training"] |= {"num_train_epochs": 1, "gradient_checkpointing": True}
    results = train(parse_recipe({**values, "head_learning_rate_ratio": 0.5})).results
    assert results["head_learning_rate"] == results["learning_rate"] / 2
