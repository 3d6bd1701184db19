"""Tensors to kernels: layouts, workspaces and grids, with the base's products; no autograd here.

Leading sizes of x and of the gradient are collapsed to T tokens: a view wherever their strides allow one, else a copy.
Beyond that any strides go. Factors are made contiguous; they are small.
"""

import torch
import torch.nn.functional as F
import triton
from torch.library import wrap_triton

from .kernels import LONGEST_TILE, backward_kernel, forward_kernel, mask_kernel

# Programs that a backward pass is divided into, where the tokens suffice: about 8 for each of an H100's 132 processors.
BACKWARD_PROGRAMS = 1024
_MASK_TILE = {"BT": 16, "BD": 64}


def forward(
    out: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    A: torch.Tensor,
    B: torch.Tensor,
    seed: torch.Tensor | None,
    scaling: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns y (..., d_out) and u = (A_i drop(x)_i)_i of shape (T, n, r), both in x's dtype.

    Args:
        out: (..., d_out), the output of a base that computes by itself; None: `weight` says what the base is, if any.
        seed: one integer on x's device, where dropout > 0.
    """
    n, r, block_in = A.shape
    block_out = B.shape[1]
    rows = x.reshape(-1, x.shape[-1])
    tokens = rows.shape[0]
    if out is not None:
        y = out.clone(memory_format=torch.contiguous_format)
    elif weight is not None:
        y = F.linear(x, weight, bias)
    else:
        y = x.new_empty((*x.shape[:-1], n * block_out))
    u = x.new_empty((tokens, n, r))
    if tokens > 0:
        wrap_triton(forward_kernel)[lambda meta: (triton.cdiv(tokens, meta["BT"]) * n,)](
            rows,
            y.view(-1, n * block_out),
            u,
            A.contiguous(),
            B.contiguous(),
            seed,
            scaling,
            keep_scale(dropout),
            tokens,
            *rows.stride(),
            n=n,
            r=r,
            block_in=block_in,
            block_out=block_out,
            R=padded(r),
            THRESHOLD=_threshold(dropout),
            ADD=out is not None or weight is not None,
        )
    return y, u


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    A: torch.Tensor,
    B: torch.Tensor,
    u: torch.Tensor,
    seed: torch.Tensor | None,
    scaling: float,
    dropout: float,
    need_x: bool,
    need_A: bool,
    need_B: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, A and B, in their shapes and dtypes; an empty tensor for one that is not needed.

    Args:
        grad: (..., d_out), of any strides.
        u: (T, n, r), from `forward`.
    """
    n, r, block_in = A.shape
    block_out = B.shape[1]
    rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    tokens = rows.shape[0]
    chunk = chunk_length(tokens, n, r)
    chunks = triton.cdiv(tokens, chunk)
    grad_x = x.new_empty(0)
    if need_x:
        grad_x = grad_rows.new_empty(rows.shape) if weight is None else grad_rows @ weight
    sums_A = A.new_empty((chunks, n, r, block_in) if need_A else 0, dtype=torch.float32)
    sums_B = B.new_empty((chunks, n, r, block_out) if need_B else 0, dtype=torch.float32)
    if tokens > 0:
        wrap_triton(backward_kernel)[(chunks * n,)](
            grad_rows,
            rows,
            u,
            A.contiguous(),
            B.contiguous(),
            seed,
            grad_x if need_x else None,
            sums_A if need_A else None,
            sums_B if need_B else None,
            scaling,
            keep_scale(dropout),
            tokens,
            chunk,
            *grad_rows.stride(),
            *rows.stride(),
            n=n,
            r=r,
            block_in=block_in,
            block_out=block_out,
            R=padded(r),
            THRESHOLD=_threshold(dropout),
            ADD=weight is not None,
            NEED_X=need_x,
            NEED_A=need_A,
            NEED_B=need_B,
        )
    return (
        grad_x.view(x.shape) if need_x else grad_x,
        sums_A.sum(0).to(A.dtype) if need_A else A.new_empty(0),
        sums_B.sum(0).transpose(1, 2).to(B.dtype).contiguous() if need_B else B.new_empty(0),
    )


def kept_mask(x: torch.Tensor, n: int, seed: torch.Tensor, dropout: float) -> torch.Tensor:
    """Bool of x's shape: the elements that the kernels keep under this seed and probability."""
    d_in = x.shape[-1]
    mask = torch.empty(x.shape, dtype=torch.bool, device=x.device)
    tokens = mask.numel() // d_in
    if tokens > 0:
        grid = (triton.cdiv(tokens, _MASK_TILE["BT"]) * n,)
        mask_kernel[grid](mask, seed, tokens, n=n, block_in=d_in // n, THRESHOLD=_threshold(dropout), **_MASK_TILE)
    return mask


def chunk_length(tokens: int, n: int, r: int) -> int:
    """How many tokens share one sum of grad_A and grad_B: a multiple of the longest tile.

    The sums of all chunks take r / chunk_length fp32 numbers for each element of x and of the gradient: at 8 r tokens
    or more, at most a quarter of those two's bytes in 16 bits, an eighth in fp32.
    """
    least = torch.sym_max(triton.cdiv(tokens * n, BACKWARD_PROGRAMS), 8 * r)
    length: int = LONGEST_TILE * triton.cdiv(least, LONGEST_TILE)
    return length


def padded(r: int) -> int:
    """The rank that the kernels compute with (kernels.py says why)."""
    return 1 if r == 1 else max(16, triton.next_power_of_2(r))


def keep_scale(dropout: float) -> float:
    """What dropout multiplies the kept elements by."""
    return 0.0 if dropout == 1.0 else 1.0 / (1.0 - dropout)


def _threshold(dropout: float) -> int:
    """An element whose 32 random bits are below this is dropped."""
    return min(round(dropout * 2**32), 2**32 - 1)
