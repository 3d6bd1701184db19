"""How the adapter's output meets the base's: the one place that decides."""

from typing import Any, cast

import torch
from torch import nn
from torch._subclasses import FakeTensor
from torch.nn.modules import module as torch_module
from transformers.pytorch_utils import Conv1D

# FakeTensor: what torch.export shows in a plain tensor's place.
_PLAIN_TENSORS = (torch.Tensor, nn.Parameter, FakeTensor)
_PLAIN_BASES = (nn.Linear, Conv1D)
# By name, since the packages need not be installed. Their products make a new tensor and keep it nowhere.
_FRESH_BASES = ("bitsandbytes.nn.modules.Linear4bit", "bitsandbytes.nn.modules.Linear8bitLt")


def dense_weight(base: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    """The base's weight as (d_out, d_in), when base(x) is exactly F.linear(x, weight, base.bias); else None.

    There are three ways, from the fastest down:

    1. Base and adapter in one function (`ops.block_lora`): the adapter's output is added in place into the base's, and
       its gradient into the gradient of x. That needs all of these:
       - base is nn.Linear or transformers' Conv1D itself: a subclass, a quantised layer or another adapter may compute
         something else;
       - its forward is not replaced on the instance (accelerate's offloading does that), and neither it nor torch
         globally has module hooks, which would not run or would see an output without the adapter;
       - weight and x are plain tensors: DTensor (FSDP2, tensor parallelism) and torchao's subclasses dispatch by
         themselves.
    2. base(x), and the adapter added to it by another function (`ops.add_block_lora`), for every other base whose
       output is a plain tensor in the adapter's dtype. In place only where nobody else can hold that output
       (`is_fresh`): a hook may have kept it, and a function that autograd differentiates by its own output, such as a
       hook's tanh, would fail in the backward pass. Else into one new tensor, with no temporary beside it.
    3. base(x) + the adapter's output, where base(x) or x is a tensor subclass, or autocast or the base chose another
       dtype than the adapter's.
    """
    if type(base) not in _PLAIN_BASES or type(x) not in _PLAIN_TENSORS:
        return None
    weight = cast(torch.Tensor, base.weight)
    if type(weight) not in _PLAIN_TENSORS or _is_watched(base):
        return None
    return weight.T if isinstance(base, Conv1D) else weight


def is_fresh(base: nn.Module, out: torch.Tensor) -> bool:
    """Whether `out`, which base(x) has just answered, may be overwritten: nobody else holds it, nor memory of it.

    True for bases that are known to make it anew, and watched by no hook (see `dense_weight`).
    """
    kind = type(base)
    known = kind in _PLAIN_BASES or f"{kind.__module__}.{kind.__qualname__}" in _FRESH_BASES
    return known and type(out) is torch.Tensor and not _is_watched(base)


def may_add(out: Any, x: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether `ops.add_block_lora` takes these: the second way of `dense_weight`."""
    return type(out) in _PLAIN_TENSORS and type(x) in _PLAIN_TENSORS and out.dtype == dtype


def _is_watched(base: nn.Module) -> bool:
    """Whether anything but the class's own forward has a say in base(x)."""
    return "forward" in base.__dict__ or _has_hooks(base)


def _has_hooks(base: nn.Module) -> bool:
    return bool(
        base._forward_hooks
        or base._forward_pre_hooks
        or base._backward_hooks
        or base._backward_pre_hooks
        or torch_module._has_any_global_hook()
    )
