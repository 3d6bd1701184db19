import re
from typing import Any

import pytest

from melora.compare.space import RATE, Range, Search, dimension, spaces
from melora.errors import MeloraError


def test_without_a_space_the_rates_are_spanned() -> None:
    assert spaces(Search(sampler="tpe"), (1e-4, 1e-3, 1e-2)) == {RATE: Range(1e-4, 1e-2, log=True, whole=False)}


def test_a_space_of_its_own() -> None:
    search = Search(sampler="tpe", space={RATE: {"low": 1e-4, "high": 1e-2, "log": True}, "adapter.n": [2, 4]})
    assert spaces(search, ()) == {RATE: Range(1e-4, 1e-2, log=True, whole=False), "adapter.n": [2, 4]}


def test_whole_numbers_stay_whole() -> None:
    assert dimension("adapter.r", {"low": 1, "high": 8}) == Range(1, 8, log=False, whole=True)


def test_nothing_to_span() -> None:
    with pytest.raises(MeloraError, match=re.escape("search.space: has no training.learning_rate")):
        spaces(Search(sampler="tpe"), (1e-3,))


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("data.holdout", [1, 2], "search.space.data.holdout: only keys of adapter (but method) and training"),
        ("adapter.method", ["lora", "melora"], "search.space.adapter.method: only keys"),
        ("adapter.n", [4], "must be two choices or more"),
        ("adapter.n", [4, [2]], "must be two choices or more, each a plain value"),
        ("adapter.n", 4, "must be {low: ..., high: ..., log: true} or a list of choices, got 4"),
        ("adapter.n", {"low": 4}, "must be {low: ..., high: ..., log: true}"),
        ("adapter.n", {"low": 4, "high": 4}, "low must be below high"),
        ("adapter.n", {"low": 0, "high": 4, "log": True}, "and above 0 with log: true"),
        ("adapter.n", {"low": 1, "high": float("inf")}, "low must be below high"),
    ],
)
def test_bad_spaces(key: str, values: Any, message: str) -> None:
    with pytest.raises(MeloraError, match=re.escape(message)):
        Search(sampler="tpe", space={key: values})
