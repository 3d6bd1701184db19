"""The base model's own dropout on a CPU, by melora's masks: bernoulli_ takes up to two fifths of a training step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F

from ..ops.keep_bits import draw, keep_scale, masks

_LEAST = 2**14  # elements; below, making the table that masks are drawn from takes longer than bernoulli_
_plain = F.dropout


@contextmanager
def fast_dropout() -> Iterator[None]:
    """Within it, torch.nn.functional.dropout on a CPU draws eight elements at once and keeps one bit of each.

    Each element is dropped with the same probability, by draws of the same generator, but others than PyTorch's own
    (`python benchmarks/pieces.py encoder` has the times). What is small, traced, in place or on another device is left
    to PyTorch.

    The function is replaced, since models hand their attention's probabilities to it by that name; a TorchFunctionMode
    is off within backward(), where activation checkpointing drops once more.
    """
    before = F.dropout
    F.dropout = _dropout
    try:
        yield
    finally:
        F.dropout = before


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """As torch.nn.functional.dropout, with its names."""
    served = type(input) is torch.Tensor and input.device.type == "cpu" and input.is_floating_point()
    large = input.dim() > 0 and input.numel() >= _LEAST
    if not (served and large and training and 0.0 < p < 1.0) or inplace or torch.compiler.is_compiling():
        return _plain(input, p, training, inplace)
    dropped: torch.Tensor = _Masked.apply(input, draw(input.numel(), p, input.device), keep_scale(p))
    return dropped


class _Masked(torch.autograd.Function):
    """x times the scale where its bit is set, 0 elsewhere. It is linear: its backward pass is itself."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bits: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.save_for_backward(bits)
        ctx.scale = scale
        rows = x.reshape(-1, x.shape[-1])
        kept = torch.empty_like(rows, memory_format=torch.contiguous_format)
        zero = x.new_zeros(())
        for start, stop, mask in masks(rows, bits):
            # One pass, rounded once.
            torch.addcmul(zero, rows[start:stop], mask, value=scale, out=kept[start:stop])
        return kept.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (bits,) = ctx.saved_tensors
        return _Masked.apply(grad, bits, ctx.scale), None, None
