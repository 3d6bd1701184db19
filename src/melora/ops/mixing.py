"""What lies between A and B where information crosses blocks: a learned core, or a fixed shuffle, of the small product.

Both act on u = (A_j x_j)_j of shape (n, T, r), n * r numbers a token, so they cost next to nothing beside the base.
"""

import torch


def mix(u: torch.Tensor, core: torch.Tensor | None, shuffle: bool) -> torch.Tensor:
    """v of u's shape: what block i's B is applied to.

    Args:
        u: (n, T, r).
        core: (r, n, n), v_i[k] = sum_j core[k, i, j] u_j[k]: block (i, j) of the update is B_i diag(core[:, i, j]) A_j
            (BoRA's form, ICLR 2026, with the number itself in place of its exponential).
        shuffle: v_i[j q + p] = u_j[i q + p] with q = r / n: GraLoRA's exchange of ranks (NeurIPS 2025).
    """
    if shuffle:
        return exchange(u, 0)
    if core is None:
        return u
    if u.shape[2] == 1:
        return torch.mm(core[0], u.squeeze(2)).unsqueeze(2)
    return torch.bmm(core, u.permute(2, 0, 1)).permute(1, 2, 0)


def exchange(u: torch.Tensor, block: int, rank: int = -1) -> torch.Tensor:
    """u with n groups of r / n ranks exchanged with the n blocks, as a new tensor; twice gives u again.

    Args:
        u: of any shape with n along `block` and r along `rank`, n a divisor of r.
        block, rank: the two dimensions, block before rank.
    """
    n, rank = u.shape[block], rank % u.dim()
    exchanged: torch.Tensor = u.unflatten(rank, (n, -1)).transpose(block, rank).flatten(rank, rank + 1)
    return exchanged


def core_gradient(grad_v: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The gradient of the core, (r, n, n), from those of v and from u, both (n, T, r)."""
    return torch.bmm(grad_v.permute(2, 0, 1), u.permute(2, 1, 0))


def dense_columns(B: torch.Tensor, core: torch.Tensor | None, shuffle: bool) -> torch.Tensor:
    """(d_out, n * r): what the update applies to u of one token, whose numbers are in A's order; differentiable.

    Args:
        B: (n, d_out / n, r).
        core, shuffle: as in `mix`.
    """
    if core is not None:
        return torch.einsum("iok,kij->iojk", B, core).flatten(2).flatten(0, 1)
    dense: torch.Tensor = torch.block_diag(*B)
    if shuffle:  # B's column (i, j q + p) is for A's row (j, i q + p)
        dense = exchange(dense.unflatten(1, (B.shape[0], -1)), 1).flatten(1)
    return dense
