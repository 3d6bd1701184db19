"""Benchmarks of a run: checked first, scored, and written into the run and its model card."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...errors import MeloraError
from ..evaluate import restore
from ..folder import ADAPTER, BENCHMARKS, open_run, write_json
from ..tasks import task_class
from .card import add_to_card
from .score import Options, load_tasks, score


def benchmark(run: str | Path, options: Options, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Score a run on benchmarks; writes benchmarks.json into it and a section into its model card.

    Args:
        run: the run folder.
        options: which benchmarks, and how.
        overrides: changes to its recipe, such as model.name_or_path=...

    Returns:
        What benchmarks.json holds; see `score`.

    Raises:
        MeloraError: no run of a causal language model, an unknown benchmark, or no data for it.
        TrainingError: out of memory with one row at a time.
    """
    path, recipe = open_run(run)
    if task_class(recipe.task).peft_type != "CAUSAL_LM":
        raise MeloraError(
            f"run {path}: benchmarks ask a language model, and this run's task is {recipe.task}; score it without "
            "--tasks, or give a run of task causal-lm"
        )
    tasks = load_tasks(options)
    scored = score(restore(path, overrides), options, tasks)
    write_json(path / BENCHMARKS, scored)
    add_to_card(path / ADAPTER / "README.md", scored)
    return scored
