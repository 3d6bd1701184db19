"""Running a module with other tensors in place of some of its parameters."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.func import functional_call


def call_with(module: nn.Module, weights: Mapping[str, torch.Tensor], args: Any, kwargs: Any) -> Any:
    """module(*args, **kwargs) with `weights` (names as in named_parameters) for its own; gradients flow to them.

    This is functional_call, which replaces parameters, and nothing else. While an FSDP model runs, though, its modules
    hold their gathered weights as plain attributes too, which hide the parameters: those are taken away for the call.
    """
    with ExitStack() as stack:
        for path in weights:
            owner, _, name = path.rpartition(".")
            attributes = module.get_submodule(owner).__dict__
            if name in attributes:
                stack.callback(attributes.__setitem__, name, attributes.pop(name))
        return functional_call(module, dict(weights), args, kwargs)
