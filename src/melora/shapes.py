"""What n and r may be for a weight of a given shape (checked before anything is allocated), and where n blocks lie."""

import math

import torch

from .errors import MeloraError


def divisors(number: int) -> list[int]:
    """All divisors of a positive number, ascending."""
    small = [k for k in range(1, math.isqrt(number) + 1) if number % k == 0]
    return sorted({*small, *(number // k for k in small)})


def ways_out(size: int) -> str:
    """What to do about an n that does not divide `size`, for the end of a message."""
    possible = divisors(size)
    shown = ", ".join(map(str, possible if len(possible) <= 24 else [*possible[:23], "...", possible[-1]]))
    return f"choose n from {shown}, or give this module its own in n_pattern, or leave it out by exclude_modules"


def block_grid(weight: torch.Tensor, n: int, rows: int = 0, columns: int = 1) -> torch.Tensor:
    """The n x n blocks of a weight, as one view: (n, n, ...) with the sizes of `rows` and `columns` divided by n.

    Args:
        weight: of any number of dimensions and any strides.
        n: divides both sizes.
        rows, columns: which dimensions are split, rows before columns.
    """
    split = weight.unflatten(columns, (n, -1)).unflatten(rows, (n, -1))
    grid: torch.Tensor = split.movedim((rows, columns + 1), (0, 1))
    return grid


def diagonal_of(grid: torch.Tensor) -> torch.Tensor:
    """The n diagonal blocks of a grid (n, n, ...), as a view (n, ...)."""
    return grid.diagonal(dim1=0, dim2=1).movedim(-1, 0)


def check_shape(module: str, d_in: int, d_out: int, n: int, r: int) -> None:
    """Raise MeloraError unless n divides d_in and d_out and r is no larger than the larger of them.

    Args:
        module: the module's name, for the message.
        d_in, d_out: the weight's sizes.
        n, r: number of minis and rank of one.
    """
    if d_in % n or d_out % n:
        raise MeloraError(
            f"{module}: n={n} does not divide both d_in={d_in} and d_out={d_out}; {ways_out(math.gcd(d_in, d_out))}"
        )
    check_rank(module, d_in, d_out, n, r)


def check_exchange(module: str, n: int, r: int, mixing: str) -> None:
    """Raise MeloraError if ranks are to be exchanged between n blocks and n does not divide r."""
    if mixing == "shuffle" and r % n:
        raise MeloraError(
            f"{module}: mixing='shuffle' sends r / n ranks of each block to each, and n={n} does not divide r={r}: "
            f"choose r={math.ceil(r / n) * n} (in rank_pattern for this module alone), a divisor of {r} for n, or "
            "mixing='learned'"
        )


def check_rank(module: str, d_in: int, d_out: int, n: int, r: int) -> None:
    """Raise MeloraError if r is larger than the larger side of the weight (d_out, d_in)."""
    if r > max(d_in, d_out):
        raise MeloraError(
            f"{module}: r={r} is larger than the weight ({d_out} x {d_in}); a mini on its block of "
            f"{d_out // n} x {d_in // n} has at most rank {min(d_in, d_out) // n}: choose r up to that, or rank_pattern"
        )
