from collections.abc import Callable
from typing import Any


def test_benchs_own_options_reach_it(melora: Callable[..., Any]) -> None:
    done = melora("bench", "--help")
    assert done.code == 0
    assert "--tokens" in done.out


def test_bad_options_are_one_line(melora: Callable[..., Any]) -> None:
    done = melora("bench", "--tokens", "many")
    assert done.code == 2
    assert done.err.startswith("error: argument --tokens: invalid int value")
    assert done.err.count("\n") == 1
