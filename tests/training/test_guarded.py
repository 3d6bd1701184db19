import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch

from melora.training.failures import TrainingError
from melora.training.guarded import MOST_OVERFLOWS, Guarded
from melora.training.losses import LossTrend
from melora.training.recipe import Recipe
from melora.training.run import train
from melora.training.trainer import AdapterTrainer

Make = Callable[..., Recipe]
QUICK = {"eval_strategy": "no", "max_steps": 8}


@pytest.fixture
def warnings_of_melora(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("melora"), "propagate", True)
    return caplog


@pytest.fixture
def sick_row(tiny_data: Path, tmp_path: Path) -> dict[str, str]:
    """The data section with a training file whose 50th row, alone with its text, is so far off that its loss is inf."""
    table = pyarrow.parquet.read_table(tiny_data / "train.parquet").to_pydict()
    table["text"][49] = "bad plot good plot bad"
    file = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.table(table), file)
    return {"train": str(file)}


def spoil(
    monkeypatch: pytest.MonkeyPatch, what: Callable[[Guarded, dict[str, Any], torch.Tensor], torch.Tensor]
) -> None:
    """Put `what` between the loss of a training batch and the rest."""
    original = AdapterTrainer.compute_loss

    def compute_loss(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        loss = original(self, model, dict(inputs), *args, **kwargs)
        return what(self, inputs, loss) if model.training else loss

    monkeypatch.setattr(AdapterTrainer, "compute_loss", compute_loss)


def has_sick_row(inputs: dict[str, Any]) -> bool:
    """Whether the batch holds the sick row: [CLS] bad plot good plot bad [SEP]."""
    start = torch.tensor([2, 7, 14, 4, 14, 7, 3])
    ids = inputs["input_ids"]
    return any(bool((row[:7] == start).all()) for row in ids if len(row) >= 7)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_loss_that_is_not_finite_names_step_and_rows_and_takes_no_step(
    make_recipe: Make, sick_row: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, accumulation: int
) -> None:
    steps: list[int] = []
    original = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *a, **k: (steps.append(1), original(*a, **k))[1])
    spoil(monkeypatch, lambda trainer, inputs, loss: loss * math.nan if has_sick_row(inputs) else loss)
    training = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": accumulation}
    with pytest.raises(TrainingError, match=r"^the loss is nan at step (\d+), in training rows ") as caught:
        train(make_recipe(data=sick_row, training=training))
    step = int(str(caught.value).split("at step ")[1].split(",")[0])
    assert len(steps) == step - 1
    named = str(caught.value).split("training rows ")[1].split(" (the first")[0]
    assert "50" in named.split(", ")
    assert len(named.split(", ")) == 4  # the sick one of the accumulated batches alone
    assert "; stopped before the step: lower training.learning_rate (0.02 now) or adapter.lora_alpha" in str(
        caught.value
    )
    assert not (tmp_path / "run").exists()


def test_the_last_good_checkpoint_is_named(make_recipe: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spoil(monkeypatch, lambda trainer, inputs, loss: loss * (math.inf if trainer.state.global_step == 30 else 1))
    with pytest.raises(TrainingError, match=r"the loss is inf at step 31, .*; the last good checkpoint is ") as caught:
        train(make_recipe())
    assert str(caught.value).endswith(str(tmp_path / "run.partial" / "checkpoints" / "checkpoint-24"))


class Explode(torch.autograd.Function):
    """The identity, with a gradient of inf."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * math.inf


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_gradient_that_is_not_finite_stops_before_the_step(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch, max_grad_norm: float
) -> None:
    spoil(
        monkeypatch,
        lambda trainer, inputs, loss: Explode.apply(loss) if trainer.state.global_step == 3 else loss,
    )
    with pytest.raises(TrainingError, match=r"^the gradient's norm is (nan|inf) at step 4, in training rows \d+"):
        train(make_recipe(training={**QUICK, "max_grad_norm": max_grad_norm}))


class Checked(Guarded):
    """The check alone, with a scaler such as fp16 on a GPU has."""

    def __init__(self, scaler: Any) -> None:
        class Accelerator:
            pass

        class State:
            global_step = 7

        class Args:
            learning_rate = 0.1

        self.accelerator, self.state, self.args = Accelerator(), State(), Args()
        self.accelerator.scaler = scaler  # type: ignore[attr-defined]
        self.train_dataset, self.processing_class, self._overflows = [], None, 0
        self.losses = LossTrend()


def test_fp16_may_overflow_while_its_scaler_calibrates() -> None:
    checked = Checked(torch.amp.GradScaler("cpu"))
    for _ in range(3):
        for _ in range(MOST_OVERFLOWS - 1):
            checked._check_gradient(math.inf, [])
        checked._check_gradient(1.0, [])
    for _ in range(MOST_OVERFLOWS - 1):
        checked._check_gradient(math.nan, [])
    with pytest.raises(
        TrainingError, match=r"norm is inf, the 20th time in a row whatever fp16's loss scale at step 8"
    ):
        checked._check_gradient(math.inf, [])
    with pytest.raises(TrainingError, match="norm is inf at step 8"):
        Checked(torch.amp.GradScaler("cpu", enabled=False))._check_gradient(math.inf, [])


def test_a_module_without_gradient_stops_the_run_after_a_few_steps(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = AdapterTrainer.__init__

    def init(self: AdapterTrainer, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        module = self.model.get_submodule("base_model.model.bert.encoder.layer.1.attention.self.value")
        module.register_forward_hook(lambda module, inputs, output: output.detach())

    monkeypatch.setattr(AdapterTrainer, "__init__", init)
    recipe = replace(make_recipe(training=QUICK), idle_modules=[r"layer\.1.*value"])
    run = train(recipe)
    assert run.results["steps"] == 8
    named = r"1 of 4 adapted modules did not change in [56] steps, .*: bert\.encoder\.layer\.1\.attention\.self\.value;"
    with pytest.raises(TrainingError, match=named):
        train(make_recipe(training=QUICK), overwrite=True)
    assert run.path.exists()  # the finished run that was to be overwritten


def test_a_rate_that_diverges_is_reported_and_recorded(
    make_recipe: Make, warnings_of_melora: pytest.LogCaptureFixture
) -> None:
    training = {"learning_rate": 30.0, "max_grad_norm": 0, "eval_strategy": "no", "lr_scheduler_type": "constant"}
    run = train(make_recipe(training=training))
    told = run.results["train_loss"]
    assert told["diverged"]
    assert told["end"] > 1.25 * told["start"]
    assert json.loads((run.path / "results.json").read_text())["train_loss"] == told
    assert "the learning rate 30 diverged; try training.learning_rate=3" in warnings_of_melora.text
    assert "the training loss rose from" in warnings_of_melora.text


def test_a_run_that_learns_is_not_said_to_diverge(trained_run: Path) -> None:
    told = json.loads((trained_run / "results.json").read_text())["train_loss"]
    assert not told["diverged"]
    assert 0.5 < told["end"] < 1.5


def test_a_loss_that_rose_to_infinity_blames_the_learning_rate(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda trainer, inputs, loss: loss * 10.0 ** (trainer.state.global_step * 12))
    with pytest.raises(
        TrainingError, match=r"the loss had risen from .* to .* before: the learning rate 0\.02 diverged"
    ):
        train(make_recipe(training={**QUICK, "max_grad_norm": 0}))


def test_a_validation_loss_that_is_not_finite_stops_the_run(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    original = AdapterTrainer.compute_loss

    def compute_loss(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        out = original(self, model, *args, **kwargs)
        return out if model.training else ((out[0] * math.nan, out[1]) if isinstance(out, tuple) else out * math.nan)

    monkeypatch.setattr(AdapterTrainer, "compute_loss", compute_loss)
    with pytest.raises(TrainingError, match="the validation loss is nan after step 8"):
        train(make_recipe(training={"max_steps": 8}))
