"""n from an effective rank, and r of many modules from their effective ranks and a budget.

RaLoRA (ICLR 2026) takes n = 2^floor(log2(erank(G) / r)), erank(G) the effective rank of the gradient G of the layer's
weight: as many minis of rank r as the update that the loss asks for has directions. Here n is then clipped to the
divisors of both sizes of the weight. The rule for r is this project's own.
"""

import heapq
import math
from collections.abc import Mapping

from .shapes import divisors

# Rounding of a singular value decomposition in fp64, with room: an effective rank that is 8 by its mathematics is 8.
_ROUNDING = 1e-9


def choose_n(erank: float, r: int, d_in: int, d_out: int, mixing: str = "none") -> int:
    """The largest power of two that is at most erank / r, or 1; then the largest divisor of both sizes up to that.

    Args:
        erank: effective rank of the gradient of the weight (d_out, d_in).
        r: rank of one mini.
        d_in, d_out: the weight's sizes.
        mixing: as in MeloraConfig; with "shuffle" n divides r as well.
    """
    sizes = (d_in, d_out, r) if mixing == "shuffle" else (d_in, d_out)
    power = 1
    while 2 * power * r <= erank * (1 + _ROUNDING):
        power *= 2
    return max(n for n in divisors(math.gcd(*sizes)) if n <= power)


def choose_ranks(eranks: Mapping[str, float], sizes: Mapping[str, tuple[int, int]], budget: int) -> dict[str, int]:
    """Ranks from 1, in proportion to the effective ranks, that take at most `budget` parameters.

    Every module begins with 1. Then one rank at a time goes to the module with the largest erank / (r + 1/2), the first
    of equals, until the next does not fit: Webster's rule for seats, by which no module loses when the budget grows.
    What is left over is less than one rank of one module. No rank exceeds the weight's smaller side; a module without
    gradient stays at 1.

    Args:
        eranks: name -> effective rank.
        sizes: name -> (d_in, d_out).
        budget: at least what r = 1 takes everywhere, sum (d_in + d_out).
    """
    ranks = dict.fromkeys(eranks, 1)
    left = budget - sum(sum(sizes[name]) for name in ranks)
    order = {name: index for index, name in enumerate(ranks)}
    queue = [(-erank / 1.5, order[name], name) for name, erank in eranks.items() if erank > 0]
    heapq.heapify(queue)
    while queue:
        _, _, name = heapq.heappop(queue)
        if ranks[name] >= min(sizes[name]):
            continue
        left -= sum(sizes[name])
        if left < 0:
            break
        ranks[name] += 1
        heapq.heappush(queue, (-eranks[name] / (ranks[name] + 0.5), order[name], name))
    return ranks
