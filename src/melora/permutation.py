"""Channels in another order before the split into blocks: which mini gets which. Computed as a LoRA of rank n * r."""

from typing import Any

import torch
from torch import nn

from .errors import MeloraError
from .shapes import block_grid, diagonal_of


class Permutation(nn.Module):
    """The orders that a calibration found for one adapter of one layer.

    Attributes:
        weight: (d_in + d_out,), int32: place k of the input, then of the output, is taken by channel weight[k]; -1 in
            all of it until it is calibrated. A buffer: saved with the adapter, never trained.
        is_known: whether `weight` was seen to be an order. That is found out where it is set or loaded: compiled code
            can't ask a tensor, and on a GPU the answer waits for all that runs.
    """

    weight: torch.Tensor

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.sizes = d_in, d_out
        self.is_known = False
        self.register_buffer("weight", torch.full((d_in + d_out,), -1, dtype=torch.int32))

    def is_calibrated(self) -> bool:
        """Whether there is an order, right or wrong."""
        return not bool((self.weight < 0).any())

    def set(self, order: torch.Tensor) -> None:
        """Take an order that was checked."""
        self.weight.copy_(order)
        self.is_known = True

    @torch.compiler.assume_constant_result  # asked once, when code is compiled, and not in it
    def problem(self) -> str | None:
        """What is wrong with `weight`; None, and is_known from then on, if it is an order.

        Also what is asked in the first forward call after PEFT's hotswap, which writes into `weight` unseen.
        """
        if not self.is_calibrated():
            return (
                "permute='correlation' needs an order of the channels before it is used: "
                "melora.calibrate(model, batches), which `melora train` does by itself"
            )
        side = unordered_side(self.weight, *self.sizes)
        self.is_known = side is None
        return None if side is None else _not_once(side)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.is_known = False
        if not self.weight.is_meta:
            self.problem()

    def extra_repr(self) -> str:
        return f"channels={len(self.weight)}"


def strided(size: int, n: int) -> torch.Tensor:
    """The order in which mini i has the channels i, i + n, i + 2 n, ...: (size,), int64."""
    return torch.arange(size).view(-1, n).T.flatten()


def mini_blocks(weight: torch.Tensor, n: int, permute: str) -> torch.Tensor:
    """The block of a (d_out, d_in) weight that each mini has: (n, d_out / n, d_in / n).

    Args:
        permute: "none" or "strided".
    """
    if permute == "none":
        return diagonal_of(block_grid(weight, n))
    return torch.stack([weight[i::n, i::n] for i in range(n)])


def unordered_side(order: torch.Tensor, d_in: int, d_out: int) -> str | None:
    """The side, "input" or "output", of which `order` (of Permutation.weight) does not hold every channel once."""
    for side, part in zip(("input", "output"), order.split([d_in, d_out]), strict=True):
        if not torch.equal(part.sort().values.long().cpu(), torch.arange(len(part))):
            return side
    return None


def check_orders(what: str, order: torch.Tensor, d_in: int, d_out: int) -> None:
    """Raise MeloraError unless `order` (of Permutation.weight) holds every channel of the input and the output once."""
    side = unordered_side(order, d_in, d_out)
    if side is not None:
        raise MeloraError(f"{what}: {_not_once(side)}")


def _not_once(side: str) -> str:
    return f"the order of its {side} channels does not name each of them once; calibrate again"


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
