"""A study of a tiny model that trains in seconds, ways to run it in this process, and made-up records."""

import runpy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from melora.compare.jobs import Job
from melora.compare.known import Known
from melora.compare.process import Halt
from melora.compare.record import Record
from melora.compare.state import State, note_failure, state_of
from melora.compare.study import Study, parse_study
from melora.compare.worker import make

_SHARED = runpy.run_path(str(Path(__file__).parents[1] / "training" / "conftest.py"))
tiny_model, tiny_data = _SHARED["tiny_model"], _SHARED["tiny_data"]
_MADE_UP = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("made_up.py"))))


class InProcess:
    """An executor that makes one run after the other in a thread of this process.

    Attributes:
        made: what was asked for: (run, whether to score it).
        halt_after: raise Halt for all runs after so many.
        broken: learning rates whose runs fail.
    """

    parallel = 1

    def __init__(self) -> None:
        self.made: list[tuple[str, bool]] = []
        self.halt_after: int | None = None
        self.broken: set[float] = set()
        self._thread = ThreadPoolExecutor(1)

    def submit(self, job: Job, *, score: bool, priority: int) -> "Future[State]":
        return self._thread.submit(self._make, job, score)

    def _make(self, job: Job, score: bool) -> State:
        if self.halt_after is not None and len(self.made) >= self.halt_after:
            raise Halt
        self.made.append((job.run, score))
        if job.rate in self.broken:
            note_failure(job, "training", "the loss is NaN")
        else:
            make(job, score=score)
        return state_of(job)

    def halt(self) -> None:
        self.halt_after = 0

    def close(self) -> None:
        pass


@pytest.fixture
def executor() -> InProcess:
    return InProcess()


@pytest.fixture
def nothing_known() -> Known:
    return Known({})


@pytest.fixture
def study_values(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> dict[str, Any]:
    """A study of two methods on one task, two rates and two seeds, as plain values; its output is tmp_path/study."""
    return {
        "output": str(tmp_path / "study"),
        "reference": "lora",
        "seeds": [0, 1],
        "learning_rates": [0.02, 0.002],
        "base": {
            "model": {"name_or_path": str(tiny_model)},
            "data": {
                "train": str(tiny_data / "train.parquet"),
                "validation": str(tiny_data / "validation.parquet"),
                "text": ["text"],
                "max_length": 16,
                "holdout": 24,
            },
            "adapter": {"target_modules": ["query", "value"]},
            "training": {"num_train_epochs": 2, "per_device_train_batch_size": 8, "use_cpu": True},
        },
        "tasks": {"rating": {"task": "regression", "data": {"label": "rating"}}},
        "methods": {
            "melora": {"adapter": {"method": "melora", "n": 4, "r": 1, "lora_alpha": 8}},
            "lora": {"adapter": {"method": "lora", "r": 4, "lora_alpha": 8}},
        },
    }


@pytest.fixture
def make_study(study_values: dict[str, Any]) -> Callable[..., Study]:
    """A Study with sections changed: make_study(seeds=[0], search={...})."""

    def build(**changes: Any) -> Study:
        return parse_study({**study_values, **changes})

    return build


@pytest.fixture
def study_file(study_values: dict[str, Any], tmp_path: Path) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study_values))
    return file


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
