"""Suites at tiny sizes: what is measured and what is written, never how long it takes."""

import argparse
from collections.abc import Callable, Iterator

import pytest
import torch

from melora.bench import cli
from melora.bench.group import Group
from melora.bench.options import Options
from melora.bench.suites import SUITES

SMALL = ["--quick", "--d-in", "32", "--tokens", "16", "--threads", "1", "--n", "4"]


@pytest.fixture
def run() -> Iterator[Callable[..., int]]:
    """Runs the command with tiny sizes; words are added at the end and win."""
    threads = torch.get_num_threads()

    def run(*words: str) -> int:
        return cli.run(parsed(*words))

    yield run
    assert torch.get_num_threads() == threads


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args([*SMALL, *words])


def groups(suite: str, *words: str) -> list[Group]:
    return SUITES[suite](Options.of(parsed("--suite", suite, *words), list(SUITES)))


@pytest.fixture(autouse=True)
def one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds of one call: enough to write a row."""
    monkeypatch.setattr("melora.bench.options.REPETITIONS", 2)
    monkeypatch.setitem(__import__("melora.bench.presets", fromlist=["DEFAULTS"]).DEFAULTS, "repetitions", 2)
    monkeypatch.setattr("melora.bench.timing.SHORTEST_TURN", 0.0)
    monkeypatch.setattr("melora.bench.timing.WARM_UP", 1)
