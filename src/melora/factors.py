"""The modules that hold an adapter's trained numbers, and these numbers in a dtype to multiply them in."""

import torch
from torch import nn


class MiniFactors(nn.Module):
    """One factor of all n minis of one adapter: `weight` of shape (n, rows, columns), or with more columns' sizes.

    A module of its own, named melora_A or melora_B, since PEFT's hotswap and FSDP's wrap policy look for that.

    Attributes:
        start: what the factor is measured from (initial.py), of the same shape and never trained; not there for 0. A
            parameter and no buffer, so that it is cast, moved and sharded as `weight` is.
    """

    def __init__(self, *shape: int, has_start: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*shape))
        if has_start:
            self.start = nn.Parameter(torch.empty(*shape), requires_grad=False)

    @property
    def has_start(self) -> bool:
        return "start" in self._parameters

    def extra_repr(self) -> str:
        n, rows, *columns = self.weight.shape
        return f"n={n}, rows={rows}, columns={'x'.join(map(str, columns))}"


class Core(nn.Module):
    """What mixes the ranks of one adapter across blocks: `weight` of shape (r, n, n), for experts (E, r, n, n)."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*shape))

    def extra_repr(self) -> str:
        return f"r={self.weight.shape[-3]}, n={self.weight.shape[-1]}"


def wide(factor: torch.Tensor) -> torch.Tensor:
    """A factor, or a weight to make it of, in fp32 if it is 16 bits wide, which hold too little of a product."""
    return factor.to(torch.promote_types(factor.dtype, torch.float32))
