"""Channels in another order before the split into blocks: which mini gets which. Computed as a LoRA of rank n * r."""

import torch
from torch import nn

from .errors import MeloraError


class Permutation(nn.Module):
    """The orders that a calibration found for one adapter of one layer.

    Attributes:
        weight: (d_in + d_out,), int32: place k of the input, then of the output, is taken by channel weight[k]; -1 in
            all of it until it is calibrated. A buffer: saved with the adapter, never trained.
    """

    weight: torch.Tensor

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.full((d_in + d_out,), -1, dtype=torch.int32))

    def extra_repr(self) -> str:
        return f"channels={len(self.weight)}"


def strided(size: int, n: int) -> torch.Tensor:
    """The order in which mini i has the channels i, i + n, i + 2 n, ...: (size,), int64."""
    return torch.arange(size).view(-1, n).T.flatten()


def check_orders(what: str, order: torch.Tensor, d_in: int, d_out: int) -> None:
    """Raise MeloraError unless `order` (of Permutation.weight) holds every channel of the input and the output once."""
    for side, part in zip(("input", "output"), order.split([d_in, d_out]), strict=True):
        if not torch.equal(part.sort().values.long().cpu(), torch.arange(len(part))):
            raise MeloraError(
                f"{what}: the order of its {side} channels does not name each of them once; calibrate again"
            )


def placed(t: torch.Tensor, n: int, order: torch.Tensor | None) -> torch.Tensor:
    """t (size, ...), its rows in the order of the places, as a tensor whose row c is channel c's.

    Args:
        order: (size,), the channel in each place; None for the strided order.
    """
    if order is None:
        by_channel: torch.Tensor = t.unflatten(0, (n, -1)).transpose(0, 1).flatten(0, 1)
        return by_channel
    return t.new_zeros(t.shape).index_copy(0, order.long(), t)


def lora_of(A: torch.Tensor, columns: torch.Tensor, order: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The one LoRA of rank n * r that minis on permuted channels are; differentiable.

    Args:
        A: (n, r, d_in / n).
        columns: (d_out, n * r), B and what mixes ranks, its rows in the order of the places.
        order: of Permutation.weight; None for the strided order.

    Returns:
        A (1, n * r, d_in) and B (1, d_out, n * r).
    """
    n, _, width = A.shape
    of_in, of_out = (None, None) if order is None else order.split([n * width, len(columns)])
    rows = placed(torch.block_diag(*A).T, n, of_in).T
    return rows[None], placed(columns, n, of_out)[None]
