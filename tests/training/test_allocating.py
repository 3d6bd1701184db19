"""Runs whose n is chosen before the first step: what they choose, that they keep it, and under which conditions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from melora import MeloraError
from melora.allocation import Allocation
from melora.training import allocating
from melora.training.allocating import allocation_for, read_allocation
from melora.training.folder import RunFolder
from melora.training.prepare import load
from melora.training.recipe import Recipe, parse_recipe
from melora.training.run import train
from melora.training.timed import time_step
from melora.training.trainer import AdapterTrainer

AUTO = {"n": "auto", "target_modules": ["query", "dense"]}


@pytest.fixture
def auto(make_recipe: Callable[..., Recipe], lively_model: Path) -> Callable[..., Recipe]:
    """A recipe of one epoch with n: auto, and sections changed."""

    def make(**changes: Any) -> Recipe:
        training = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2, **changes.pop("training", {})}
        values = make_recipe(adapter=AUTO, training=training).to_dict()
        model = {"name_or_path": str(lively_model)}
        return parse_recipe({**values, "model": model, "adapter_search": {"batches": 2}, **changes})

    return make


def chosen(run: Path) -> dict[str, int]:
    return {row["name"]: row["n"] for row in json.loads((run / "allocation.json").read_text())["modules"]}


def measured(recipe: Recipe) -> dict[str, float]:
    """The effective ranks that a run would choose by."""
    allocation = allocation_for(load(recipe), RunFolder(recipe))
    assert allocation is not None
    return {row.name: row.effective_rank for row in allocation.modules}


def factors(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def test_it_is_the_run_with_these_n_given_by_hand(auto: Callable[..., Recipe], tmp_path: Path) -> None:
    run = train(auto()).path
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["n_pattern"]
    given = {key: config[key] for key in ("n", "n_pattern", "r", "target_modules")}
    by_hand = auto(output=str(tmp_path / "by_hand")).to_dict()
    by_hand |= {"adapter": {**by_hand["adapter"], **given}, "adapter_search": {}}
    assert factors(train(parse_recipe(by_hand)).path) == factors(run)


def test_the_seed_decides(auto: Callable[..., Recipe]) -> None:
    def choose(seed: int) -> Allocation | None:
        recipe = auto(seed=seed)
        return allocation_for(load(recipe), RunFolder(recipe))

    first = choose(0)
    assert first is not None
    assert first == choose(0)
    assert first != choose(1)


def test_a_resumed_run_keeps_its_choice_and_makes_no_other(
    auto: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(auto(output=str(tmp_path / "whole"))).path
    recipe = auto()

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    original = AdapterTrainer.__init__

    def init(self: AdapterTrainer, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.add_callback(Stop())

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "__init__", init)
        with pytest.raises(KeyboardInterrupt):
            train(recipe)
    file = tmp_path / "run.partial" / "allocation.json"
    text = file.read_text()

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the pass was repeated")

    monkeypatch.setattr(allocating, "allocate", never)
    for damaged in ("{}", '{"batches": 2, "budget": null, "modules": [{"name": "a"}]}', "[", None):
        file.unlink()
        if damaged is not None:
            file.write_text(damaged)
        with pytest.raises(MeloraError, match=r"allocation.json: (is no list|not valid JSON|no such file)"):
            train(recipe, resume=True)
        file.write_text(text)
    result = train(recipe, resume=True)
    assert result.results["resumed"]
    assert factors(result.path) == factors(whole)
    assert chosen(result.path) == chosen(whole)


def test_activation_checkpointing_and_precision_change_how_it_is_computed_alone(
    auto: Callable[..., Recipe],
) -> None:
    plain = measured(auto())
    assert measured(auto(training={"activation_checkpointing": True})) == pytest.approx(plain)
    half = measured(auto(training={"bf16": True}))
    assert half != plain
    assert half == pytest.approx(plain, rel=0.2)
    weights = measured(parse_recipe({**auto().to_dict(), "model": {**auto().to_dict()["model"], "dtype": "bfloat16"}}))
    assert weights not in (plain, half)
    assert weights == pytest.approx(plain, rel=0.2)


@pytest.mark.usefixtures("unpacked")
def test_a_4bit_base_under_activation_checkpointing(auto: Callable[..., Recipe], tmp_path: Path) -> None:
    def in_4_bits(checkpointing: bool) -> Recipe:
        values = auto(training={"max_steps": 2, "activation_checkpointing": checkpointing}).to_dict()
        values["model"] |= {"quantization": "4bit"}
        return parse_recipe({**values, "output": str(tmp_path / f"checkpointing-{checkpointing}")})

    run = train(in_4_bits(checkpointing=True)).path
    chosen_by = {row.name: row.effective_rank for row in read_allocation(run / "allocation.json").modules}
    assert chosen_by == measured(in_4_bits(checkpointing=False))
    assert chosen_by != pytest.approx(measured(auto()), rel=1e-3)  # it is the rounded base's


def test_few_rows_make_one_batch(auto: Callable[..., Recipe]) -> None:
    recipe = auto(training={"per_device_train_batch_size": 64}, adapter_search={"batches": 5})
    allocation = allocation_for(load(recipe), RunFolder(recipe))
    assert allocation is not None
    assert allocation.batches == 1  # of 96 rows, one of 64 and no rest


def test_the_time_of_a_step_needs_no_choice(auto: Callable[..., Recipe]) -> None:
    assert time_step(auto()).step_seconds > 0


def test_a_failed_pass_writes_nothing(auto: Callable[..., Recipe], tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    with pytest.raises(MeloraError, match="is below"):
        train(parse_recipe({**auto().to_dict(), "adapter_search": {"budget": 100}}))
    assert set(tmp_path.iterdir()) == before
    assert torch.is_grad_enabled()
