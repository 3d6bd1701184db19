"""Logarithmic axes whose ticks can be read, and names that fit."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melora.compare.report.drawing.axes import label, legible, log_limits, log_ticks


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (560e3, 930e3, [600e3, 700e3, 800e3, 900e3]),
        (3e4, 4e5, [5e4, 1e5, 2e5]),
        (5e3, 4e6, [1e4, 3e4, 1e5, 3e5, 1e6, 3e6]),
        (1, 1e6, [1, 10, 100, 1000, 1e4, 1e5, 1e6]),
    ],
)
def test_ticks_by_hand(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high) == pytest.approx(ticks)


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=5))
def test_every_value_lies_within_the_limits_and_there_are_ticks(values: list[int]) -> None:
    low, high = log_limits(values)
    assert 0 < low < high
    assert all(low < value < high for value in values if value > 0)
    ticks = log_ticks(low, high)
    assert 1 <= len(ticks) <= 14
    assert all(low <= tick <= high for tick in ticks)


def test_of_ticks_too_near_to_each_other_the_one_with_most_stays() -> None:
    tried = {1e-4: 1, 3e-4: 4, 3.3e-4: 1, 9e-4: 2, 1e-3: 2, 1e-2: 1}
    assert legible(tried, 1e-4, 1e-2, 0.05) == [1e-4, 3e-4, 9e-4, 1e-2]
    assert legible(tried, 1e-4, 1e-2, 0.0) == list(tried)


@given(
    st.dictionaries(st.floats(1e-6, 1.0), st.integers(1, 20), min_size=1, max_size=30),
    st.floats(0.01, 0.5),
)
def test_legible_ticks_lie_apart_and_those_left_out_are_near_one_that_counts_no_less(
    counts: dict[float, int], least: float
) -> None:
    low, high = log_limits(counts)
    kept = legible(counts, low, high, least)

    def between(one: float, other: float) -> float:
        return abs(math.log(one / other)) / math.log(high / low)

    assert kept == sorted(kept)
    assert all(between(one, other) >= least for one, other in pairwise(kept))
    for value in counts.keys() - set(kept):
        assert any(between(value, stays) < least and counts[stays] >= counts[value] for stays in kept)


def test_long_names_are_cut_and_none_is_hidden() -> None:
    assert label("m" * 28) == "m" * 28
    assert label("m" * 29) == "m" * 27 + "\N{HORIZONTAL ELLIPSIS}"
    assert label("_name") == " _name"
    assert label("two\nlines") == "two lines"
