"""What a mini of a linear layer does by itself: its block on the diagonal of dW, and the channels which that reads.

Whatever crosses blocks (mixing) is left out: block (i, i) is B_i A_i, with mixing="learned" B_i diag(C[:, i, i]) A_i,
with "shuffle" the r / n ranks that block i keeps, and for a start B_i A_i - B0_i A0_i, what training has made of it.
"""

import torch

from .factors import wide
from .linear import Linear
from .permutation import strided
from .shapes import diagonal_of


def own_factors(layer: Linear, adapter: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A (n, k, d_in / n) and B (n, d_out / n, k) of the minis' own blocks of dW / scaling, in fp32 or wider.

    k is r, or r / n of a shuffle. Where A and B have a start the rows of A are orthonormal, since rows that are joined
    of A and A - A0 mean nothing one by one; k is then min(2 r, d_in / n).
    """
    A, B = map(wide, layer.factors(adapter))
    core, n = layer.core(adapter), layer.n[adapter]
    if core is not None:
        B = B * core.diagonal(dim1=1, dim2=2).T.unsqueeze(1)
    elif layer.mixing[adapter] == "shuffle":
        A, B = diagonal_of(A.unflatten(1, (n, -1))), diagonal_of(B.unflatten(2, (n, -1)).transpose(1, 2))
    if layer.mini_factors(adapter)[0].has_start:
        Q, R = torch.linalg.qr(A.mT)
        A, B = Q.mT, B @ R.mT
    return A, B


def own_inputs(layer: Linear, adapter: str, x: torch.Tensor) -> torch.Tensor:
    """What each mini reads of x (tokens, d_in): (tokens, n, d_in / n).

    Raises:
        MeloraError: permute="correlation" without an order of the channels.
    """
    n, d_in = layer.n[adapter], x.shape[-1]
    if layer.permute[adapter] != "none":
        order = layer.order(adapter)
        x = x[:, strided(d_in, n) if order is None else order[:d_in].long()]
    slices: torch.Tensor = x.unflatten(-1, (n, -1))
    return slices
