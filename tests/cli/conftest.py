"""The fixtures of tests/training, and a way to run a command in this process."""

import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from melora_cli import main

_SHARED = runpy.run_path(str(Path(__file__).parents[1] / "training" / "conftest.py"))
tiny_model, lively_model, tiny_data = _SHARED["tiny_model"], _SHARED["lively_model"], _SHARED["tiny_data"]
recipe_values, recipe_file, trained_run = _SHARED["recipe_values"], _SHARED["recipe_file"], _SHARED["trained_run"]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def melora(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run `melora ARGUMENTS` and return its exit code and output."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run
