"""n from an effective rank, and r of many modules from their effective ranks and a budget.

RaLoRA (ICLR 2026) takes n = 2^floor(log2(erank(G) / r)), erank(G) the effective rank of the gradient G of the layer's
weight: as many minis of rank r as the update that the loss asks for has directions. Here n is then clipped to the
divisors of both sizes of the weight. The rule for r is this project's own.
"""

import heapq
import math
from collections.abc import Mapping

from .initial import directions
from .shapes import divisors

# Rounding of a singular value decomposition in fp64, with room: an effective rank that is 8 by its mathematics is 8.
_ROUNDING = 1e-9


def choose_n(erank: float, r: int, d_in: int, d_out: int, mixing: str = "none", init_weights: bool | str = True) -> int:
    """The largest power of two that is at most erank / r, or 1; then the largest divisor of both sizes up to that.

    Args:
        erank: effective rank of the gradient of the weight (d_out, d_in).
        r: rank of one mini.
        d_in, d_out: the weight's sizes.
        mixing: as in MeloraConfig; with "shuffle" n divides r as well, with "learned" n^2 is at most d_in + d_out, so
            that the core's r n^2 numbers are no more than the factors'.
        init_weights: as in MeloraConfig; the blocks keep room for such a start.
    """
    power = 1
    while 2 * power * r <= erank * (1 + _ROUNDING):
        power *= 2
    most = min(power, min(d_in, d_out) // (r * directions(init_weights)))
    if mixing == "learned":
        most = min(most, math.isqrt(d_in + d_out))
    return max(n for n in possible_n(r, d_in, d_out, mixing) if n <= max(1, most))


def possible_n(r: int, d_in: int, d_out: int, mixing: str) -> list[int]:
    """The numbers of minis of rank r that a weight can be divided into, ascending."""
    sizes = (d_in, d_out, r) if mixing == "shuffle" else (d_in, d_out)
    return divisors(math.gcd(*sizes))


def largest_rank(d_in: int, d_out: int, n: int | None, mixing: str = "none", init_weights: bool | str = True) -> int:
    """The largest r that is of any use: that of one mini's block, halved where the start takes 2r of its directions.

    With mixing="shuffle" each of the n^2 blocks of the weight is of r / n ranks, so that r may be n times that.

    Args:
        d_in, d_out: the weight's sizes.
        n: None where it is chosen after r, and may be 1.
        mixing, init_weights: as in MeloraConfig.
    """
    blocks = 1 if n is None or mixing == "shuffle" else n
    return min(d_in, d_out) // blocks // directions(init_weights)


def rank_step(n: int | None, mixing: str = "none") -> int:
    """What r is a multiple of: n where ranks are shuffled between n blocks, else (n chosen after r: None) 1."""
    return n if n is not None and mixing == "shuffle" else 1


def choose_ranks(
    eranks: Mapping[str, float],
    sizes: Mapping[str, tuple[int, int]],
    budget: int,
    *,
    most: Mapping[str, int] | None = None,
    steps: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Ranks in proportion to the effective ranks, that take at most `budget` parameters.

    Every module begins with one step. Then one step at a time goes to the module with the largest erank / (r + step/2),
    the first of equals, until the next does not fit: Webster's rule for seats, by which no module loses when the budget
    grows. What is left over is less than one step of one module. A module without gradient stays at one step.

    Args:
        eranks: name -> effective rank.
        sizes: name -> (d_in, d_out).
        budget: at least what one step takes everywhere, sum step (d_in + d_out).
        most: name -> its largest rank, at least one step; by default the weight's smaller side.
        steps: name -> what its rank is a multiple of; by default 1.
    """
    most = {name: min(sides) for name, sides in sizes.items()} if most is None else most
    steps = dict.fromkeys(eranks, 1) if steps is None else steps
    cost = {name: steps[name] * sum(sizes[name]) for name in eranks}
    ranks = {name: steps[name] for name in eranks}
    left = budget - sum(cost.values())
    order = {name: index for index, name in enumerate(ranks)}

    def place(name: str) -> tuple[float, int, str]:
        return -eranks[name] / (ranks[name] + steps[name] / 2), order[name], name

    queue = [place(name) for name, erank in eranks.items() if erank > 0]
    heapq.heapify(queue)
    while queue:
        _, _, name = heapq.heappop(queue)
        if ranks[name] + steps[name] > most[name]:
            continue
        left -= cost[name]
        if left < 0:
            break
        ranks[name] += steps[name]
        heapq.heappush(queue, place(name))
    return ranks
