"""A trained run of a Llama of 30 thousand parameters, and a few rows in the layout of --data-folder."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from melora.training.recipe import parse_recipe
from melora.training.run import train

_SHARED = runpy.run_path(str(Path(__file__).parents[1] / "instructions" / "conftest.py"))
tiny_llama_folder, sums = _SHARED["tiny_llama_folder"], _SHARED["sums"]

PROGRAMS = {"right": "    return x + 1\n", "wrong": "    return x\n"}


@pytest.fixture(scope="session")
def llama_run(tiny_llama_folder: Path, sums: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished causal-lm run; tests must not change it (copy it for that)."""
    data = {"path": str(sums), "validation": "test", "format": "chat", "max_length": 128}
    recipe = {
        "model": {"name_or_path": str(tiny_llama_folder)},
        "task": "causal-lm",
        "data": {**data, "columns": {"instruction": "question", "output": "answer"}},
        "adapter": {"method": "melora", "r": 1, "n": 4, "target_modules": ["q_proj", "v_proj"]},
        "training": {
            "num_train_epochs": 1,
            "learning_rate": 0.02,
            "per_device_train_batch_size": 8,
            "use_cpu": True,
        },
        "output": str(tmp_path_factory.mktemp("runs") / "llama"),
    }
    return train(parse_recipe(recipe)).path


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mmlu: one subject, 3 shots and 12 questions; bbh: 4 rows of a task; humaneval: one function."""
    folder = tmp_path_factory.mktemp("benchmarks")
    questions = [
        {
            "subject": "anatomy",
            "question": f" Question {i}? ",
            "A": f"a{i}",
            "B": f"b{i}",
            "C": f"c{i}",
            "D": f"d{i}",
            "answer": i % 4,
        }
        for i in range(15)
    ]
    other = {**questions[0], "subject": "virology"}
    write = _writer(folder)
    write("mmlu/dev.parquet", [other, *questions[:3]])
    write("mmlu/test.parquet", [*questions[3:], other])
    write(
        "bbh/test.parquet",
        [{"task": "boolean_expressions", "input": f"{x} and True is", "target": x} for x in ("True", "False") * 2],
    )
    function = {"prompt": "def f(x):\n", "entry_point": "f", "canonical_solution": PROGRAMS["right"]}
    write("humaneval/test.parquet", [{"task_id": "0", "test": "def check(f):\n    assert f(1) == 2\n", **function}])
    return folder


def _writer(folder: Path) -> Callable[[str, list[dict[str, Any]]], None]:
    def write(name: str, rows: list[dict[str, Any]]) -> None:
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)

    return write
