"""Switching off all that drops at random, where a module must stay in training mode and draws it itself."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

_DRAWN_BY = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")


@contextmanager
def no_dropout(model: nn.Module) -> Iterator[None]:
    """A block in which nothing is dropped in `model`, whatever mode its modules are in; backward passes included.

    nn.Dropout follows its own mode. Others ask their parent's: BART's layers call F.dropout(training=self.training),
    its stacks leave layers out by `layerdrop`, T5's attention hands its rate to a fused kernel. So torch's functions
    return their input (in the whole process: a checkpoint may be recomputed on another thread), and the rates that
    modules with activation checkpointing, and their configs, hold by a name with "drop" in it are 0. All is taken back
    at the end.
    """
    with ExitStack() as stack:
        for name in _DRAWN_BY:
            stack.callback(setattr, F, name, getattr(F, name))
            setattr(F, name, _as_it_is)
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                for owner in (module, getattr(module, "config", None)):
                    _set_rates(stack, getattr(owner, "__dict__", {}))
        yield


def _as_it_is(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """F.dropout's own arguments."""
    return input


def _set_rates(stack: ExitStack, values: dict[str, Any]) -> None:
    """0 for every rate among an object's attributes; in its __dict__, which frozen and validated configs have, too."""
    for name, value in values.items():
        if "drop" in name and isinstance(value, float) and value:
            stack.callback(values.__setitem__, name, value)
            values[name] = 0.0
