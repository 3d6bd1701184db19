"""Interleaved timing: contestants take turns, so that whatever else the machine does hits all of them alike."""

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.utils.benchmark import timer

# A turn lasts at least this long, so that the clock and a turn's first call don't show. In seconds.
SHORTEST_TURN = 0.005
WARM_UP = 3


@dataclass(frozen=True)
class Timing:
    """What one contestant took. Times in ms per call; ratios to the first contestant, the frozen base.

    Attributes:
        ratio_min: its fastest call over the base's fastest.
        ratio_p20, ratio_p50, ratio_p80: percentiles of the ratio within one repetition, where both ran side by side.
    """

    ms_min: float
    ms_p50: float
    ratio_min: float
    ratio_p20: float
    ratio_p50: float
    ratio_p80: float


def interleave(steps: Sequence[Callable[[], object]], repetitions: int) -> tuple[list[Timing], int]:
    """Time every step `repetitions` times in turns, in another order each time, the same ones in every run.

    Were the order fixed or rotated, a step would nearly always follow the same other one, whose code and data it then
    finds in the caches or does not: PEFT's LoRA of another rank, say, or the base.

    Args:
        steps: what to time; the first is what the others are compared with.
        repetitions: 2 or more.

    Returns:
        one Timing for each step, and how many calls one turn made (the same for all).
    """
    for step in steps:
        for _ in range(WARM_UP):
            step()
    calls = max(1, math.ceil(SHORTEST_TURN / timed(steps[0], 1)))
    seconds: list[list[float]] = [[] for _ in steps]
    order = list(range(len(steps)))
    shuffle = random.Random(0).shuffle
    for _ in range(repetitions):
        shuffle(order)
        for which in order:
            seconds[which].append(timed(steps[which], calls))
    return [_summary(own, seconds[0]) for own in seconds], calls


def timed(step: Callable[[], object], calls: int) -> float:
    """Seconds per call."""
    start = timer()  # waits for the accelerator first, where there is one
    for _ in range(calls):
        step()
    return (timer() - start) / calls


def _summary(own: list[float], base: list[float]) -> Timing:
    ratios = [mine / theirs for mine, theirs in zip(own, base, strict=True)]
    deciles = statistics.quantiles(ratios, n=10, method="inclusive")
    return Timing(
        ms_min=1e3 * min(own),
        ms_p50=1e3 * statistics.median(own),
        ratio_min=min(own) / min(base),
        ratio_p20=deciles[1],
        ratio_p50=deciles[4],
        ratio_p80=deciles[7],
    )
