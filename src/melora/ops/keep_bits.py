"""Dropout's mask, one bit an element: drawn eight elements at a time, and read back piece by piece.

A byte stands for eight neighbours, and takes one of 256 patterns. A table of 2^16 entries holds each pattern as often
as its probability says, so that a uniform number of 16 bits, an index into it, draws eight elements at once. What the
counts leave over by being whole numbers, some tens of entries, is drawn anew for each call from what is left of the
probabilities: each element is then kept with the exact probability. Two bytes that hit the same one of these entries
are equal; that is a pair in 10^7 or less.
`python benchmarks/pieces.py draw` times it beside bernoulli_ and native_dropout (docs/performance.md).
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch

_ENTRIES = 1 << 16
_DRAWN_AT_ONCE = {"cpu": 2**16}  # bytes of the mask: the random numbers and indices for them stay in the cache
# Elements worked on at once, for the same reason; with fewer, the calls show (benchmarks/pieces.py dropout: bf16,
# 2,048 x 768, forward and backward, 9.4 ms with 2^17, 7.5 with 2^18, 4.2 with 2^19), more would be a small x whole.
_CHUNK = {"cpu": 2**18}
_ELSEWHERE = 2**24  # an accelerator wants few and large kernels


def keep_scale(dropout: float) -> float:
    """What kept elements are multiplied by; 0 where none is kept."""
    return 1.0 / (1.0 - dropout) if dropout < 1.0 else 0.0


def word_count(elements: int) -> int:
    """How many words hold one bit for each of `elements`."""
    return (elements + 63) // 64


def draw(elements: int, dropout: float, device: torch.device) -> torch.Tensor:
    """Independent bits, 1 with probability 1 - dropout, from the device's default generator.

    Args:
        elements: how many bits are needed.
        dropout: in [0, 1].
        device: of the result.

    Returns:
        (word_count(elements),), int64
    """
    words = torch.empty(word_count(elements), dtype=torch.int64, device=device)
    fixed, shares = (torch.as_tensor(values, device=device) for values in _patterns(dropout))
    rest = torch.bucketize(torch.rand(_ENTRIES - len(fixed), device=device), shares, right=True)
    table = torch.cat([rest.to(torch.uint8), fixed])
    octets = words.view(torch.uint8)
    at_once = min(_DRAWN_AT_ONCE.get(device.type, _ELSEWHERE), len(octets))
    random = torch.empty(at_once // 4, dtype=torch.int64, device=device)
    index = torch.empty(at_once, dtype=torch.int32, device=device)
    for part in octets.split(at_once) if at_once else ():
        count = len(part)
        index[:count] = random[: count // 4].random_(-(2**63), None).view(torch.uint16)
        torch.index_select(table, 0, index[:count], out=part)
    return words


@lru_cache(16)
def _patterns(dropout: float) -> tuple[np.ndarray, np.ndarray]:
    """The table's fixed part, and the limits in [0, 1] between the patterns' shares of the rest.

    NumPy's, since a tensor that was made while tracing must not be kept for later calls.
    """
    kept = np.array([pattern.bit_count() for pattern in range(256)])
    expected = _ENTRIES * (1.0 - dropout) ** kept * dropout ** (8 - kept)
    counts = np.floor(expected).astype(np.int64)
    fixed = np.repeat(np.arange(256, dtype=np.uint8), counts)
    shares = np.cumsum(expected - counts) / max(_ENTRIES - len(fixed), 1)
    return fixed, shares[:-1].astype(np.float32)


def chunk_rows(width: int, device: torch.device) -> int:
    """How many rows of `width` elements to work on at once; that many rows fill whole words. The same for any dtype."""
    step = 64 // math.gcd(width, 64)
    elements = _CHUNK.get(device.type, _ELSEWHERE)
    return max(1, elements // (width * step)) * step


def masks(rows: torch.Tensor, bits: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
    """The bits as zeros and ones, chunk by chunk of `rows` (T, d).

    Which bit stands for which element is free as long as it stays so: all first bits of the bytes, then all second
    ones, ... is an operation between long rows and one number each.

    Returns:
        for each chunk its first row, the row after its last, and its mask (that many rows, d) of rows' dtype. The mask
        may be overwritten, and is by the next one.
    """
    count, width = rows.shape
    step = max(1, min(chunk_rows(width, rows.device), count))
    octets = 8 * word_count(step * width)
    first_to_last = (1 << torch.arange(8, device=rows.device)).to(torch.uint8).unsqueeze(1)
    # One buffer for all chunks: new memory for each would cost more than the arithmetic.
    ones = torch.empty(8 * octets, dtype=torch.uint8, device=rows.device)
    mask = torch.empty(8 * octets, dtype=rows.dtype, device=rows.device)
    for start in range(0, count, step):
        stop = min(start + step, count)
        some = bits[start * width // 64 : word_count(stop * width)].view(torch.uint8)
        part = ones[: 8 * some.numel()]
        torch.bitwise_and(some, first_to_last, out=part.view(8, -1))
        # Faster than comparing with 0.
        mask[: part.numel()].copy_(part.clamp_(max=1))
        yield start, stop, mask[: (stop - start) * width].view(-1, width)


def full_mask(x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """The whole mask at once, of x's shape and dtype."""
    rows = x.reshape(-1, x.shape[-1])
    mask = torch.empty_like(rows, memory_format=torch.contiguous_format)
    for start, stop, part in masks(rows, bits):
        mask[start:stop] = part
    return mask.view(x.shape)
