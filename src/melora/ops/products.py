"""The operation's arithmetic as batched products over strided views: forward and backward, without autograd.

Works on the CPU and on any device that PyTorch has matrix products for. Nothing is copied: the n slices of x are a
strided view (n, T, d_in / n) of it, and results are accumulated into strided views of y and of grad_x. With dropout
the rows are taken in chunks that stay in the cache, so that no temporary is as large as x.
"""

import torch
import torch.nn.functional as F

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
    n = A.shape[0]
    if dropout > 0.0:
        u, bits = _project_kept(x, A, dropout)
        scaling *= keep_scale(dropout)
    else:
        u, bits = torch.bmm(minis(x, n), A.transpose(1, 2)), None
    if out is None:
        out = x.new_zeros((*x.shape[:-1], n * B.shape[1])) if weight is None else F.linear(x, weight, bias)
    v = mix(u, core, shuffle)
    _accumulate(out.view(-1, n, B.shape[1]).transpose(0, 1), v, B.transpose(1, 2), scaling)
    return out, u, bits


def one_token(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    core: torch.Tensor | None = None,
    shuffle: bool = False,
) -> torch.Tensor:
    """`block_lora` for x of one token, as in decoding, without gradients and dropout.

    There each call of PyTorch counts, and one token needs no transposed views: 5 calls instead of 9.
    """
    n = A.shape[0]
    u = torch.bmm(A, x.reshape(n, -1, 1))
    if core is not None or shuffle:
        u = mix(u.transpose(1, 2), core, shuffle).transpose(1, 2)
    y = x.new_zeros((*x.shape[:-1], n * B.shape[1])) if weight is None else F.linear(x, weight, bias)
    y.view(n, -1, 1).baddbmm_(B, u, alpha=scaling)
    return y


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
    n, _, block_in = A.shape
    g = minis(grad, n)
    scaling *= keep_scale(dropout)
    grad_x = grad_A = grad_B = grad_core = None
    if need_B:
        # As (u^T g)^T: 20 times faster than g^T u, whose rows are d_out apart (2 cores, fp32, d = 768, T = 2048,
        # 8x1: 0.22 against 4.4 ms).
        v = mix(u, core, shuffle)
        grad_B = torch.bmm(v.transpose(1, 2), g).mul_(scaling).transpose(1, 2)
    if not (need_A or need_x or need_core):
        return None, None, grad_B, None
    grad_u = torch.bmm(g, _by_column(B)).mul_(scaling)
    if need_core:
        grad_core = core_gradient(grad_u, u)
    grad_u = mix(grad_u, None if core is None else core.transpose(1, 2), shuffle)  # the exchange is its own inverse
    if need_x:
        grad_x = torch.zeros_like(x, memory_format=torch.contiguous_format) if weight is None else grad @ weight
    if bits is not None:
        grad_A = _backward_kept(grad_x, grad_u, x, A, bits, need_A)
    else:
        if need_A:
            grad_A = torch.bmm(grad_u.transpose(1, 2), minis(x, n))
        if grad_x is not None:
            _accumulate(grad_x.view(-1, n, block_in).transpose(0, 1), grad_u, A, 1.0)
    return grad_x, grad_A, grad_B, grad_core


def _by_column(B: torch.Tensor) -> torch.Tensor:
    """B (n, m, r) laid out column by column, as A's transpose is: the product with g is then 1.7 to 4 times faster.

    Fp32, one thread, d = 768, T = 2048: 8x1 3.1 -> 0.8 ms, 8x8 3.6 -> 2.1 ms. The copy is as small as B.
    """
    n, m, r = B.shape
    if r == 1 and B.is_contiguous():
        return B.view(n, 1, m).transpose(1, 2)  # the same numbers, but strides that the product takes as columns
    return B.transpose(1, 2).contiguous().transpose(1, 2)


def _accumulate(out: torch.Tensor, u: torch.Tensor, M: torch.Tensor, alpha: float) -> None:
    """out += alpha * u @ M in place; out (n, T, m), u (n, T, r), M (n, r, m)."""
    if u.shape[2] == 1:
        # The outer products of r = 1: elementwise is 2 to 3 times faster than the batched product (2 cores, fp32,
        # d = 768 to 2048, T = 2048: 0.24 against 0.57 ms, 1.09 against 3.21 ms).
        out.addcmul_(u, M, value=alpha)
    elif out.element_size() == 2 and out.device.type == "cpu":
        # A strided batched product of 16-bit numbers has no fast kernel on the CPU (bf16, d = 768, T = 2048, 8x8:
        # 84 ms); chunks in fp32 that stay in the cache do, and round once.
        rows = chunk_rows(out.shape[0] * out.shape[2], out.device)
        M = M.float()
        for part, some in zip(out.split(rows, 1), u.split(rows, 1), strict=True):
            part.copy_(torch.baddbmm(part.float(), some.float(), M, alpha=alpha))
    else:
        out.baddbmm_(u, M, alpha=alpha)


def _project_kept(x: torch.Tensor, A: torch.Tensor, dropout: float) -> tuple[torch.Tensor, torch.Tensor]:
    """u of kept x, not yet divided by the probability of keeping, and the bits of what was kept."""
    n, r, _ = A.shape
    rows = x.reshape(-1, x.shape[-1])
    bits = draw(rows.numel(), dropout, x.device)
    u = x.new_empty((n, rows.shape[0], r))
    columns = A.transpose(1, 2)
    for start, stop, mask in masks(rows, bits):
        u[:, start:stop] = torch.bmm(minis(mask.mul_(rows[start:stop]), n), columns)
    return u, bits


def _backward_kept(
    grad_x: torch.Tensor | None,
    grad_u: torch.Tensor,
    x: torch.Tensor,
    A: torch.Tensor,
    bits: torch.Tensor,
    need_A: bool,
) -> torch.Tensor | None:
    """grad_x += the adapter's share, where given; returns grad_A, where needed."""
    n, r, _ = A.shape
    rows = x.reshape(-1, x.shape[-1])
    grad_rows = None if grad_x is None else grad_x.view(rows.shape)
    sums = torch.promote_types(A.dtype, torch.float32)  # over the chunks; 16 bits would lose the small ones
    grad_A = torch.zeros_like(A, dtype=sums) if need_A else None
    buffer = x.new_empty(min(chunk_rows(rows.shape[1], x.device), rows.shape[0]), rows.shape[1])
    for start, stop, mask in masks(rows, bits):
        some, scratch = grad_u[:, start:stop], buffer[: stop - start]
        if grad_A is not None:
            kept = torch.mul(rows[start:stop], mask, out=scratch)
            grad_A += torch.bmm(some.transpose(1, 2), minis(kept, n))
        if grad_rows is not None and r == 1:
            minis(grad_rows[start:stop], n).addcmul_(some, minis(mask.mul_(A.reshape(-1)), n))
        elif grad_rows is not None:
            share = torch.bmm(some, A, out=scratch.view(n, stop - start, -1))
            minis(grad_rows[start:stop], n).addcmul_(share, minis(mask, n))
    return None if grad_A is None else grad_A.to(A.dtype)
