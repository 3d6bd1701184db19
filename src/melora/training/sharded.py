"""Whole tensors of a model whose parameters are cut up over ranks, by FSDP2 or DeepSpeed ZeRO-3.

What is asked for here is small (the adapter and the head), so every rank gets all of it. A size-0 shard saved as if it
were the weight is what users of PEFT lose adapters to.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ..initial import START

_CHECKPOINTED = "_checkpoint_wrapped_module."  # what FSDP's own activation checkpointing puts into names


def is_sharded(parameter: torch.Tensor) -> bool:
    """Whether this rank may hold only a part of it."""
    return isinstance(parameter, DTensor) or _is_partitioned(parameter)


def whole(parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU, each of full shape. Every rank must call this with the same names, and gets the same values.

    Args:
        parameters: sharded or not, by name.
    """
    with _gathered([parameter for parameter in parameters.values() if _is_partitioned(parameter)]):
        return {name.replace(_CHECKPOINTED, ""): _whole(parameter.detach()) for name, parameter in parameters.items()}


def whole_state(model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """What PEFT needs as the state dict of a sharded model to save its adapter; None where no parameter is sharded.

    That is all trainable parameters, what a MELoRA's are measured from (initial.py), and all buffers (some methods keep
    theirs there), and none of the frozen base: gathering that could take more memory than any rank has. Every rank must
    call this.
    """
    reshard(model)
    own = {name: value for name, value in model.named_parameters() if value.requires_grad or name.endswith(START)}
    if not any(is_sharded(parameter) for parameter in own.values()):
        return None
    return whole({**own, **dict(model.named_buffers())})


def reshard(model: torch.nn.Module) -> None:
    """Let FSDP2 take its gathered weights out of the model again.

    After an evaluation the root's are still there, as plain parameters that the optimiser does not know.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _whole(parameter: torch.Tensor) -> torch.Tensor:
    if isinstance(parameter, DTensor):
        parameter = parameter.full_tensor()
    return parameter.to("cpu", copy=True)


def _is_partitioned(parameter: torch.Tensor) -> bool:
    """By ZeRO-3, which keeps its shards beside an empty parameter."""
    return hasattr(parameter, "ds_id")


def _gathered(partitioned: list[torch.Tensor]) -> AbstractContextManager[Any]:
    if not partitioned:
        return nullcontext()
    import deepspeed

    return cast(AbstractContextManager[Any], deepspeed.zero.GatheredParameters(partitioned))
