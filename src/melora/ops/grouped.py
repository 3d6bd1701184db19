"""Rows of one batch through different adapters of one shape, as one grouped product."""

import torch

from .mixing import exchange


def grouped_block_lora(
    x: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: torch.Tensor,
    index: torch.Tensor | None,
    *,
    core: torch.Tensor | None = None,
    shuffle: bool = False,
) -> torch.Tensor:
    """Row j of the result is adapter index[j]'s output for row j of x.

    Each row's factors are gathered, r (d_in + d_out) numbers, no more than a few tokens of x and y; what is computed
    depends on the number of rows and not on the number of adapters.

    Args:
        x: (R, ..., d_in).
        A: (K, n, r, d_in / n), of K adapters.
        B: (K, n, d_out / n, r).
        scaling: (K,), the factors on their outputs.
        index: (R,), int64, which adapter a row goes through; None: row j through adapter j, R = K.
        core: (K, r, n, n) or None, and
        shuffle: as in `block_lora`.

    Returns:
        (R, ..., d_out)
    """
    _, n, _, block_in = A.shape
    if index is not None:
        A, B, scaling = (of_all.index_select(0, index) for of_all in (A, B, scaling))
        core = None if core is None else core.index_select(0, index)
    slices = x.reshape(x.shape[0], -1, n, block_in).transpose(1, 2)  # (R, n, tokens, d_in / n)
    u = (slices @ A.transpose(2, 3)).mul_(scaling.view(-1, 1, 1, 1))
    if core is not None:
        u = torch.einsum("Rkij,Rjtk->Ritk", core, u)
    elif shuffle:
        u = exchange(u, 1)
    y = u @ B.transpose(2, 3)
    return y.transpose(1, 2).reshape(*x.shape[:-1], n * B.shape[2])
