"""Dropout's mask, one bit an element: drawn without a draw for each element, and read back piece by piece.

A number that is uniform in [0, 1) has independent fair bits as its binary digits, and comparing it with the probability
of keeping an element needs them one after the other only. So 64 elements are decided at once by the logic operations
of that comparison on 64-bit random words: nothing is computed for single elements, and the result is packed already.
2,048 x 768 elements (one thread of an AMD EPYC): 3.0 ms, against 15.6 ms of bernoulli_ and 19 ms of native_dropout.
"""

import math
from collections.abc import Iterator

import torch

DIGITS = 16
_LEVELS = 1 << DIGITS
_DRAWN_AT_ONCE = 2**18  # elements: half a MB of random words, so that they stay in the cache
_CHUNK = {"cpu": 2**17}  # elements that are worked on at once, for the same reason
_CHUNK_ELSEWHERE = 2**24  # an accelerator wants few and large kernels


def keep_probability(dropout: float) -> float:
    """1 - dropout, rounded to a multiple of 2^-16: the probability that `draw` has, and the scale to divide by.

    Never 0 or 1 but where dropout is, so that no dropout at all comes of a small one.
    """
    if dropout in (0.0, 1.0):
        return 1.0 - dropout
    return min(max(round((1.0 - dropout) * _LEVELS), 1), _LEVELS - 1) / _LEVELS


def keep_scale(dropout: float) -> float:
    """What kept elements are multiplied by; 0 where none is kept."""
    keep = keep_probability(dropout)
    return 1.0 / keep if keep else 0.0


def word_count(elements: int) -> int:
    """How many words hold one bit for each of `elements`."""
    return (elements + 63) // 64


def draw(elements: int, dropout: float, device: torch.device) -> torch.Tensor:
    """Independent bits, 1 with `keep_probability`, from the device's default generator.

    Args:
        elements: how many bits are needed.
        dropout: in [0, 1].
        device: of the result.

    Returns:
        (word_count(elements),), int64
    """
    words = torch.zeros(word_count(elements), dtype=torch.int64, device=device)
    threshold = round(keep_probability(dropout) * _LEVELS)
    if threshold == 0:
        return words
    if threshold == _LEVELS:
        return words.fill_(-1)
    zeros = (threshold & -threshold).bit_length() - 1  # digits at the end that decide nothing
    digits = [(threshold >> k) & 1 for k in range(zeros, DIGITS)]
    at_once = min(_DRAWN_AT_ONCE // 64, len(words))
    random = torch.empty(len(digits), at_once, dtype=torch.int64, device=device)
    for part in words.split(at_once) if at_once else ():
        random = random[:, : len(part)].random_(-(2**63), None)
        # From the last digit to the first: where the digit is 1, a random 1 decides for "less", whatever came before;
        # where it is 0, a random 0 decides against. Each step halves the probability, and a digit 1 adds one half.
        for digit, bits in zip(digits, random.unbind(), strict=True):
            if digit:
                part.bitwise_or_(bits)
            else:
                part.bitwise_and_(bits)
    return words


def chunk_rows(width: int, device: torch.device) -> int:
    """How many rows of `width` elements to work on at once; that many rows fill whole words."""
    step = 64 // math.gcd(width, 64)
    elements = _CHUNK.get(device.type, _CHUNK_ELSEWHERE)
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
        # Faster than comparing with 0: 0.4 against 0.7 ms (2,048 x 768, fp32, one thread).
        mask[: part.numel()].copy_(part.clamp_(max=1))
        yield start, stop, mask[: (stop - start) * width].view(-1, width)


def full_mask(x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """The whole mask at once, of x's shape and dtype."""
    rows = x.reshape(-1, x.shape[-1])
    mask = torch.empty_like(rows, memory_format=torch.contiguous_format)
    for start, stop, part in masks(rows, bits):
        mask[start:stop] = part
    return mask.view(x.shape)
