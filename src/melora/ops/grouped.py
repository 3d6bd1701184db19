"""Rows of one batch through different adapters of one shape, as one grouped product."""

import torch

from .mixing import exchange

# How many rows to compute at most for each that is asked for, where adapters have unequal numbers of rows.
_PADDING = 2


def routed_block_lora(
    x: torch.Tensor,
    rows_of: list[list[int]],
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: torch.Tensor,
    *,
    dtype: torch.dtype,
    core: torch.Tensor | None = None,
    shuffle: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Some rows of x through adapters of one shape.

    The rows of an adapter are computed together, filled up to as many as the adapter with the most rows has; where that
    would more than double the work, each row with a copy of its factors.

    Args:
        x: (batch, ..., d_in).
        rows_of: the rows of x that adapter k is for, one or more for each of K adapters.
        dtype: what to compute in, the factors' own.
        The others: as in `grouped_block_lora`.

    Returns:
        the R rows that have an adapter, (R,), int64, and the adapters' output for them, (R, ..., d_out).
    """
    most = max(map(len, rows_of))
    every = [row for rows in rows_of for row in rows]
    wanted = torch.tensor(every, device=x.device)
    if most * len(rows_of) > _PADDING * len(every):
        owners = [k for k, rows in enumerate(rows_of) for _ in rows]
        index = torch.tensor(owners, device=x.device)
        some = x.index_select(0, wanted).to(dtype)
        return wanted, grouped_block_lora(some, A, B, scaling, index, core=core, shuffle=shuffle)
    even = most * len(rows_of) == len(every)
    padded = wanted if even else torch.tensor([i for rows in rows_of for i in _filled(rows, most)], device=x.device)
    some = x.index_select(0, padded).to(dtype).view(len(rows_of), most, *x.shape[1:])
    output = grouped_block_lora(some, A, B, scaling, None, core=core, shuffle=shuffle).flatten(0, 1)
    if not even:
        places = [k * most + j for k, rows in enumerate(rows_of) for j in range(len(rows))]
        output = output.index_select(0, torch.tensor(places, device=x.device))
    return wanted, output


def _filled(rows: list[int], count: int) -> list[int]:
    return rows + rows[:1] * (count - len(rows))


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
    columns = B.transpose(2, 3)
    y = u * columns if columns.shape[2] == 1 else u @ columns  # an outer product, elementwise
    return y.transpose(1, 2).reshape(*x.shape[:-1], n * B.shape[2])
