"""When the base product may be computed together with the adapter's: the one place that decides."""

from typing import cast

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from transformers.pytorch_utils import Conv1D

_PLAIN_TENSORS = (torch.Tensor, nn.Parameter)


def dense_weight(base: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    """The base's weight as (d_out, d_in), when base(x) is exactly F.linear(x, weight, base.bias); else None.

    Then the layer computes both products in one autograd.Function, so that the adapter's output is added in place into
    the base's and its gradient into the gradient of x: about 5 to 15% of a layer's step saved against two functions
    (DESIGN.md's table). That needs all of these:

    - base is nn.Linear or transformers' Conv1D itself: a subclass, a quantised layer or another adapter may compute
      something else;
    - its forward is not replaced on the instance (accelerate's offloading does that), and neither it nor torch
      globally has module hooks, which would not run or would see an output without the adapter;
    - weight and x are plain tensors: DTensor (FSDP2, tensor parallelism) and torchao's subclasses dispatch by
      themselves.

    Every other base takes the second path: base(x), plus the adapter's output.
    """
    if type(base) not in (nn.Linear, Conv1D):
        return None
    weight = cast(torch.Tensor, base.weight)
    if isinstance(base, Conv1D):
        weight = weight.T
    if type(weight) not in _PLAIN_TENSORS or type(x) not in _PLAIN_TENSORS:
        return None
    if "forward" in base.__dict__ or _has_hooks(base):
        return None
    return weight


def _has_hooks(base: nn.Module) -> bool:
    return bool(
        base._forward_hooks
        or base._forward_pre_hooks
        or base._backward_hooks
        or base._backward_pre_hooks
        or torch_module._has_any_global_hook()
    )
