"""Peers that no library has: the paper's loop, two einsums, dense diagonal blocks. Each wraps a frozen nn.Linear."""

import torch
from torch import nn

from .peers import Peer


class _Wrapped(nn.Module):
    def __init__(self, base_layer: nn.Linear, dropout: float) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()


class Loop(_Wrapped):
    """The paper's layer as it is written in the field: one small LoRA a slice, one after the other."""

    def __init__(self, base_layer: nn.Linear, n: int, r: int, dropout: float) -> None:
        super().__init__(base_layer, dropout)
        d_in, d_out, weight = base_layer.in_features, base_layer.out_features, base_layer.weight
        kind = {"dtype": weight.dtype, "device": weight.device}
        self.A = nn.ModuleList(nn.Linear(d_in // n, r, bias=False, **kind) for _ in range(n))
        self.B = nn.ModuleList(nn.Linear(r, d_out // n, bias=False, **kind) for _ in range(n))
        for weight_of_mini in self.B.parameters():
            nn.init.normal_(weight_of_mini, std=0.02)
        self.scaling = 16 / r

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        slices = x.chunk(len(self.A), dim=-1)
        minis = [B(A(self.dropout(part))) for A, B, part in zip(self.A, self.B, slices, strict=True)]
        y: torch.Tensor = self.base_layer(x) + torch.cat(minis, dim=-1) * self.scaling
        return y


class Einsum(_Wrapped):
    """The layer in two einsums, as one would write it first."""

    def __init__(self, base_layer: nn.Linear, n: int, r: int, dropout: float) -> None:
        super().__init__(base_layer, dropout)
        weight = base_layer.weight
        self.A = nn.Parameter(weight.new_empty(n, r, base_layer.in_features // n).normal_(std=0.02))
        self.B = nn.Parameter(weight.new_empty(n, base_layer.out_features // n, r).normal_(std=0.02))
        self.scaling = 16 / r

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        minis = self.dropout(x).unflatten(-1, (self.A.shape[0], -1))
        u = torch.einsum("...ni,nri->...nr", minis, self.A)
        y: torch.Tensor = self.base_layer(x) + torch.einsum("...nr,nor->...no", u, self.B).flatten(-2) * self.scaling
        return y


class DenseBlocks(_Wrapped):
    """n trained diagonal blocks without low rank: d_in * d_out / n parameters."""

    def __init__(self, base_layer: nn.Linear, n: int, dropout: float) -> None:
        super().__init__(base_layer, dropout)
        d_in, d_out = base_layer.in_features, base_layer.out_features
        self.blocks = nn.Parameter(base_layer.weight.new_empty(n, d_in // n, d_out // n).normal_(std=0.02))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        minis = self.dropout(x).reshape(-1, *self.blocks.shape[:2]).transpose(0, 1)
        update = (minis @ self.blocks).transpose(0, 1)
        y: torch.Tensor = self.base_layer(x)
        return y.add(update.reshape(y.shape))


def wrap(peer: Peer, base_layer: nn.Linear, dropout: float) -> nn.Module:
    """The wrapped layer of a peer whose method is "loop", "einsum" or "dense"."""
    if peer.method == "dense":
        return DenseBlocks(base_layer, peer.n, dropout)
    kind = {"loop": Loop, "einsum": Einsum}[peer.method]
    return kind(base_layer, peer.n, peer.r, dropout)
