"""Where the recipe's training section and the machine or launcher must agree: devices, precision, checkpointing."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import MeloraError
from .ranks import is_sharded_launch, on_cpus

# transformers' names before 5.20, which most recipes in the world still use; the old ones warn.
_RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


def on_this_machine(typed: Mapping[str, Any]) -> dict[str, Any]:
    """The training section's values, with what the devices here and the launcher add.

    Args:
        typed: the section's checked values.

    Raises:
        MeloraError: what the recipe asks for would be dropped in silence here.
    """
    values = {_RENAMED.get(key, key): value for key, value in typed.items()}
    use_cpu = bool(values.get("use_cpu"))
    if use_cpu and is_sharded_launch():
        raise MeloraError(
            "training.use_cpu: FSDP and DeepSpeed take the devices that are there; remove it, or launch with "
            "recipes/distributed/ddp.yaml"
        )
    if values.get("fp16") and (use_cpu or not torch.accelerator.is_available()):
        raise MeloraError(
            "training.fp16: needs a GPU, as gradients are scaled only there; on CPUs set training.bf16=true instead"
        )
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched != "no" and not values.get(launched):
        raise MeloraError(
            f"training.{launched}: accelerate's config says mixed_precision: {launched}, the recipe does not; set "
            f"training.{launched}=true, which is kept with the run"
        )
    if values.get("activation_checkpointing"):
        # PyTorch wants this named; the re-entrant kind loses gradients where a block's input needs none.
        options = dict(values.get("activation_checkpointing_kwargs") or {})
        values["activation_checkpointing_kwargs"] = {"use_reentrant": False, **options}
    return {"use_cpu": True, **values} if on_cpus() else values


def prepare_checkpointing(model: Any, options: Mapping[str, Any] | None) -> None:
    """Let gradients reach the adapter through re-entrant checkpoints, which drop them if no input needs any.

    Args:
        model: with its adapter; the embeddings are frozen.
        options: TrainingArguments' activation_checkpointing_kwargs.
    """
    if options and options.get("use_reentrant"):
        model.enable_input_require_grads()
