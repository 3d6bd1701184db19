"""Intervals against all resamples that there are, verdicts against hand-made intervals."""

import itertools
import math
from collections.abc import Sequence
from random import Random

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melora.compare.statistics_interval import FEWEST, METHOD, Interval, interval_of, paired_difference, verdict_of


def all_means(values: Sequence[float]) -> numpy.ndarray:
    """The mean of each of the len ** len equally likely resamples, ascending."""
    return numpy.sort([math.fsum(resample) / len(values) for resample in itertools.product(values, repeat=len(values))])


@pytest.mark.parametrize("values", [[0.1, 0.2, 0.4], [3.0, -1.0, 0.5], [0.71, 0.70, 0.75]])
def test_three_seeds_against_all_27_resamples(values: list[float]) -> None:
    means = all_means(values)
    assert len(means) == 27
    # 1 of 27 is more than 2.5%: the ends of all resamples' middle 95% are the outermost means.
    low, high = numpy.quantile(means, [0.025, 0.975], method="inverted_cdf")
    assert (low, high) == pytest.approx((min(values), max(values)))
    assert interval_of(values) == Interval(pytest.approx(sum(values) / 3), pytest.approx(low), pytest.approx(high), 3)
    assert f"with {FEWEST} it is the range of the values" in METHOD


@pytest.mark.parametrize("values", [[0.1, 0.2, 0.4, 0.8], [0.0, 1.0, 2.0, 4.0, 8.0]])
def test_more_seeds_against_all_resamples(values: list[float]) -> None:
    means = all_means(values)
    found = interval_of(values)
    assert found is not None
    # Of 9999 random resamples, 2.5% lie below a value that 2% to 3% of all resamples lie below (three standard errors).
    lowest, low, high, highest = numpy.quantile(means, [0.02, 0.03, 0.97, 0.98])
    rounding = 1e-12
    assert min(values) < lowest <= found.low + rounding <= low + 2 * rounding
    assert high <= found.high + rounding <= highest + 2 * rounding < max(values)
    assert found.mean == pytest.approx(sum(values) / len(values))


def test_few_values_have_no_interval() -> None:
    assert interval_of([]) is None
    assert interval_of([0.5]) == Interval(0.5, None, None, 1)
    assert interval_of([0.5, 0.7]) == Interval(pytest.approx(0.6), None, None, 2)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert interval_of([0.1, 0.1, 0.1]) == Interval(pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1), 3)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=6), st.randoms(use_true_random=False))
def test_an_interval_holds_its_mean_and_no_order_matters(values: list[float], random: Random) -> None:
    found = interval_of(values)
    assert found is not None
    assert found.low <= found.mean <= found.high
    assert min(values) - 1e-9 <= found.low
    assert found.high <= max(values) + 1e-9
    shuffled = list(values)
    random.shuffle(shuffled)
    assert interval_of(shuffled) == found


@pytest.mark.parametrize(
    ("low", "high", "greater", "less"),
    [
        (0.1, 0.2, "win", "loss"),
        (-0.2, -0.1, "loss", "win"),
        (-0.1, 0.1, "tie", "tie"),
        (0.0, 0.1, "tie", "tie"),
        (-0.1, 0.0, "tie", "tie"),
        (0.0, 0.0, "tie", "tie"),
        (None, None, "undecided", "undecided"),
    ],
)
def test_verdicts_whichever_way_is_better(low: float | None, high: float | None, greater: str, less: str) -> None:
    interval = Interval(0.0, low, high, 3)
    assert verdict_of(interval, greater_is_better=True) == greater
    assert verdict_of(interval, greater_is_better=False) == less


def test_a_difference_is_taken_seed_by_seed() -> None:
    ours, theirs = {0: 0.5, 1: 0.9, 2: 0.7, 3: 9.0}, {2: 0.6, 1: 0.7, 0: 0.4, 4: -9.0}
    found = paired_difference(ours, theirs, greater_is_better=True)
    assert found is not None
    assert found.interval == Interval(pytest.approx(0.4 / 3), pytest.approx(0.1), pytest.approx(0.2), 3)
    assert found.verdict == "win"
    turned = paired_difference(theirs, ours, greater_is_better=True)
    assert turned is not None
    assert turned.verdict == "loss"
    assert turned.interval.mean == pytest.approx(-found.interval.mean)


def test_no_seed_in_common_is_no_difference() -> None:
    assert paired_difference({0: 1.0}, {1: 1.0}, greater_is_better=True) is None
    assert paired_difference({}, {}, greater_is_better=True) is None
