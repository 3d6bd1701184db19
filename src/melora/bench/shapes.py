"""What a layer's problem costs in bytes and operations, before it is built."""

from collections.abc import Iterable

import torch

from .peers import Peer

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def layer_bytes(d_in: int, d_out: int, tokens: int, dtype: str, peers: Iterable[Peer]) -> int:
    """Estimated bytes at the peak: the weight; x, its gradient, a dropped copy; y, its gradient, an adapter's y."""
    rank = max(min(peer.rank, peer.n * peer.r or peer.rank) for peer in peers)
    elements = d_in * d_out + 3 * tokens * (d_in + d_out)
    elements += 3 * rank * (d_in + d_out + tokens)  # the factors and the products in between, of the widest
    return elements * DTYPES[dtype].itemsize


def layer_gflop(d_in: int, d_out: int, tokens: int, backward: bool = True) -> float:
    """10^9 operations of y = W x and, with `backward`, of x's gradient; the frozen weight has none."""
    return (4 if backward else 2) * d_in * d_out * tokens / 1e9


def possible(pairs: Iterable[tuple[int, int]], d_in: int, d_out: int) -> list[tuple[int, int]]:
    """Those (n, r) that a weight of this size can have."""
    return [(n, r) for n, r in pairs if d_in % n == 0 == d_out % n and n * r <= min(d_in, d_out)]
