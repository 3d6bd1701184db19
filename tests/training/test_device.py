from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from melora import MeloraError
from melora.training.arguments import training_arguments
from melora.training.device import on_this_machine
from melora.training.recipe import Recipe
from melora.training.tasks.regression import Regression


@pytest.mark.parametrize(
    ("training", "environment", "told"),
    [
        ({"fp16": True, "use_cpu": True}, {}, "training.fp16: needs a GPU"),
        ({}, {"ACCELERATE_MIXED_PRECISION": "bf16"}, "accelerate's config says mixed_precision: bf16"),
        ({"bf16": True}, {"ACCELERATE_MIXED_PRECISION": "fp16"}, "set training.fp16=true"),
        ({"use_cpu": True}, {"ACCELERATE_USE_FSDP": "true"}, "training.use_cpu: FSDP and DeepSpeed take the devices"),
        ({"use_cpu": True}, {"ACCELERATE_USE_DEEPSPEED": "true"}, "launch with recipes/distributed/ddp.yaml"),
    ],
)
def test_what_would_be_dropped_in_silence_is_refused(
    monkeypatch: pytest.MonkeyPatch, training: dict[str, Any], environment: dict[str, str], told: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MeloraError) as caught:
        on_this_machine(training)
    assert told in str(caught.value)


def test_what_recipe_and_launcher_agree_on_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert on_this_machine({"bf16": True})["bf16"]


def test_checkpoints_are_not_re_entrant_unless_asked(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    def options(**training: Any) -> Any:
        args = training_arguments(make_recipe(training=training), Regression(0, 1), tmp_path)
        return args.activation_checkpointing, args.activation_checkpointing_kwargs

    assert options(gradient_checkpointing=True) == (True, {"use_reentrant": False})
    asked = {"use_reentrant": True}
    assert options(gradient_checkpointing=True, gradient_checkpointing_kwargs=asked) == (True, asked)
    assert options(activation_checkpointing=True)[1] == {"use_reentrant": False}


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_transformers_is_told_of_cpus_unless_they_are_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_this_machine({}) == {"use_cpu": True}
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert on_this_machine({}) == {}
