"""The operation's arithmetic: forward and backward, without autograd.

Works on the CPU and on any device that PyTorch has matrix products for. x is not copied, and results are accumulated
into y and grad_x where they lie (`block_diagonal`). With dropout the rows are taken in chunks that stay in the cache,
so that no temporary is as large as x.
"""

import torch
import torch.nn.functional as F

from .block_diagonal import BlockDiagonal, choose_groups
from .keep_bits import chunk_rows, draw, keep_scale, masks
from .mixing import core_gradient, mix
from .plain import minis


def forward(
    out: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    dropout: float,
    core: torch.Tensor | None = None,
    shuffle: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """y, and what `backward` needs.

    Args:
        out: (..., d_out), contiguous: the base's output, overwritten by y; None: `weight` says what the base is.
        The others: as in `block_lora`.

    Returns:
        y, u = (A_i (kept x)_i)_i of shape (n, T, r), and the bits of what was kept, or None without dropout.
    """
    n, r, _ = A.shape
    groups = choose_groups(x, n, r)
    into = BlockDiagonal(A, groups)
    if dropout > 0.0:
        u, bits = _project_kept(x, into, dropout)
        scaling *= keep_scale(dropout)
    else:
        u, bits = into.project(x), None
    if out is None:
        out = x.new_zeros((*x.shape[:-1], n * B.shape[1])) if weight is None else F.linear(x, weight, bias)
    BlockDiagonal(B.transpose(1, 2), groups).accumulate(out, mix(u, core, shuffle), scaling)
    return out, u, bits


def few_tokens(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    core: torch.Tensor | None = None,
    shuffle: bool = False,
) -> torch.Tensor:
    """`block_lora` for x of one token or a few, as in decoding, without gradients and dropout.

    There each call of PyTorch counts, and this makes fewer than `forward`.
    """
    n = A.shape[0]
    u = torch.bmm(A, _columns(x.contiguous(), n))
    if core is not None or shuffle:
        u = mix(u.transpose(1, 2), core, shuffle).transpose(1, 2)
    y = x.new_zeros((*x.shape[:-1], n * B.shape[1])) if weight is None else F.linear(x, weight, bias)
    columns = _columns(y, n)
    if B.shape[2] == 1:  # an outer product, elementwise
        columns.addcmul_(B, u, value=scaling)
    else:
        columns.baddbmm_(B, u, alpha=scaling)
    return y


def _columns(rows: torch.Tensor, n: int) -> torch.Tensor:
    """(..., d) -> (n, d / n, tokens), a view to write through; one token needs no exchange of dimensions.

    Raises:
        RuntimeError: the rows are not contiguous.
    """
    tokens = rows.numel() // rows.shape[-1]
    return rows.view(n, -1, 1) if tokens == 1 else rows.view(tokens, n, -1).permute(1, 2, 0)


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    A: torch.Tensor,
    B: torch.Tensor,
    u: torch.Tensor,
    bits: torch.Tensor | None,
    scaling: float,
    dropout: float,
    need_x: bool,
    need_A: bool,
    need_B: bool,
    core: torch.Tensor | None = None,
    shuffle: bool = False,
    need_core: bool = False,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """The gradients of x (the base's too, where `weight` is given), A, B and core, each None where it is not needed.

    Args:
        grad: (..., d_out), the gradient of y.
        u, bits: from `forward`.
        core, shuffle: as in `forward`; u is what it was before mixing.
    """
    n, r, _ = A.shape
    groups = choose_groups(x, n, r)
    out_of = BlockDiagonal(B.transpose(1, 2), groups)
    scaling *= keep_scale(dropout)
    grad_x = grad_A = grad_B = grad_core = None
    if need_B:
        grad_B = out_of.summed(mix(u, core, shuffle), grad).mul_(scaling).transpose(1, 2)
    if not (need_A or need_x or need_core):
        return None, None, grad_B, None
    grad_u = out_of.project(grad).mul_(scaling)
    if need_core:
        grad_core = core_gradient(grad_u, u)
    grad_u = mix(grad_u, None if core is None else core.transpose(1, 2), shuffle)  # the exchange is its own inverse
    if need_x:
        grad_x = torch.zeros_like(x, memory_format=torch.contiguous_format) if weight is None else grad @ weight
    into = BlockDiagonal(A, groups)
    if bits is not None:
        grad_A = _backward_kept(grad_x, grad_u, x, into, bits, need_A)
    else:
        if need_A:
            grad_A = into.summed(grad_u, x)
        if grad_x is not None:
            into.accumulate(grad_x, grad_u, 1.0)
    return grad_x, grad_A, grad_B, grad_core


def _project_kept(x: torch.Tensor, into: BlockDiagonal, dropout: float) -> tuple[torch.Tensor, torch.Tensor]:
    """u of kept x, not yet divided by the probability of keeping, and the bits of what was kept."""
    n, r, _ = into.blocks.shape
    rows = x.reshape(-1, x.shape[-1])
    bits = draw(rows.numel(), dropout, x.device)
    # Laid out as `into` lays out what it gives, which is what its other products read in place.
    u = x.new_empty((n, rows.shape[0], r)) if into.groups == n else minis(x.new_empty((rows.shape[0], n * r)), n)
    for start, stop, mask in masks(rows, bits):
        u[:, start:stop] = into.project(mask.mul_(rows[start:stop]))
    return u, bits


def _backward_kept(
    grad_x: torch.Tensor | None,
    grad_u: torch.Tensor,
    x: torch.Tensor,
    into: BlockDiagonal,
    bits: torch.Tensor,
    need_A: bool,
) -> torch.Tensor | None:
    """grad_x += the adapter's share, where given; returns grad_A, where needed."""
    A = into.blocks
    rows = x.reshape(-1, x.shape[-1])
    grad_rows = None if grad_x is None else grad_x.view(rows.shape)
    sums = torch.promote_types(A.dtype, torch.float32)  # over the chunks; 16 bits would lose the small ones
    grad_A = torch.zeros_like(A, dtype=sums) if need_A else None
    buffer = x.new_empty(min(chunk_rows(rows.shape[1], x.device), rows.shape[0]), rows.shape[1])
    for start, stop, mask in masks(rows, bits):
        some, scratch = grad_u[:, start:stop], buffer[: stop - start]
        if grad_A is not None:
            kept = torch.mul(rows[start:stop], mask, out=scratch)
            grad_A += into.summed(some, kept)
        if grad_rows is not None:
            into.accumulate_masked(grad_rows[start:stop], some, mask, scratch)
    return None if grad_A is None else grad_A.to(A.dtype)
