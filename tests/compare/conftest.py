"""The made-up study, and short ways to records of a few scores."""

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from melora.compare.record import Record

_MADE_UP = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("made_up.py"))))


@pytest.fixture(scope="session")
def made_up() -> SimpleNamespace:
    """made_up.py as a module: about(), records(), record() and what changes a run's state."""
    return _MADE_UP


@pytest.fixture(scope="session")
def scored() -> Callable[..., list[Record]]:
    """Makes chosen, finished runs of a method on a task: one for each score, with seeds 0, 1, 2, ..."""

    def make(method: str, scores: list[float], task: str = "a task", **fields: Any) -> list[Record]:
        values: dict[str, Any] = {
            "peft_method": "lora",
            "learning_rate": 1e-3,
            "metric": "accuracy",
            "greater_is_better": True,
            "chosen": True,
            "parameters": 1000,
            "head_parameters": 10,
        }
        return [
            Record(**values | {"run": f"{method} {task} {seed}", "test_score": score} | fields, **place)
            for seed, score in enumerate(scores)
            for place in [{"method": method, "task": task, "seed": seed}]
        ]

    return make
