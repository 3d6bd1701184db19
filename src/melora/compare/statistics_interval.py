"""Mean and 95% interval over seeds, and the paired difference of two methods."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["win", "tie", "loss", "undecided"]

LEVEL = 0.95
RESAMPLES = 9999
# Of two values the interval is their range, which holds the mean that they scatter around every other time. Of three it
# is still their range (a 27th of the resamples are three times the lowest, more than the 2.5% that the interval leaves
# out on either side), which holds it three times in four. Few studies have more seeds, so METHOD says so.
FEWEST = 3
METHOD = (
    f"Intervals are {LEVEL:.0%} percentile bootstrap intervals of the mean over seeds ({RESAMPLES:,} resamples, fixed "
    f"random numbers); fewer than {FEWEST} seeds have none, and with {FEWEST} it is the range of the values, which "
    "holds the true mean three times in four: of equal methods one is called a win or a loss in one comparison of four."
)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its interval.

    Attributes:
        mean: of the values, in their own unit.
        low: the interval's lower end; None with fewer than FEWEST values.
        high: its upper end; None with fewer than FEWEST values.
        count: how many values there are, 1 or more.
    """

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """A method's score minus another's, over the seeds that both have.

    Attributes:
        interval: of the differences, in the score's unit, method minus other whichever way the score is better.
        verdict: win or loss where the interval lies on one side of 0, tie where it contains 0, undecided without one.
    """

    interval: Interval
    verdict: Verdict


def interval_of(values: Iterable[float]) -> Interval | None:
    """Mean and interval of finite values; their order plays no part. None without values."""
    import numpy
    from scipy.stats import bootstrap

    ordered = numpy.sort(numpy.asarray(list(values), dtype=numpy.float64))
    if not len(ordered):
        return None
    mean = float(ordered.mean())
    if len(ordered) < FEWEST:
        return Interval(mean, None, None, len(ordered))
    found = bootstrap(
        (ordered,),
        numpy.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=numpy.random.default_rng(0),
    ).confidence_interval
    # The mean of a resample of equal values may be off by a rounding: never let that put the mean outside.
    return Interval(mean, min(float(found.low), mean), max(float(found.high), mean), len(ordered))


def paired_difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], *, greater_is_better: bool
) -> Difference | None:
    """The difference of two methods' scores by seed; None where they have no seed in common.

    Args:
        ours: seed -> score.
        theirs: seed -> score of the method to compare with.
        greater_is_better: decides which side of 0 is a win.
    """
    interval = interval_of(ours[seed] - theirs[seed] for seed in ours if seed in theirs)
    return None if interval is None else Difference(interval, verdict_of(interval, greater_is_better=greater_is_better))


def verdict_of(interval: Interval, *, greater_is_better: bool) -> Verdict:
    """What an interval of differences says."""
    if interval.low is None or interval.high is None:
        return "undecided"
    if interval.low <= 0 <= interval.high:
        return "tie"
    return "win" if (interval.low > 0) == greater_is_better else "loss"
