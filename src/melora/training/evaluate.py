"""Scoring a finished run again, from its files alone."""

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet
from peft import PeftModel

from ..errors import MeloraError
from .arguments import scoring_arguments
from .base import Base, fingerprint, load_base, load_tokenizer
from .data import read_split, read_validation
from .folder import ADAPTER, ENVIRONMENT, EVALUATION, open_run, read_json, write_json
from .halving import with_halving
from .recipe import Recipe, parse_recipe
from .saved import load_saved, load_task
from .schema import apply_overrides
from .source import ModelSource, find_model
from .tasks import Task
from .trainer import build_trainer

_WRITERS = {".csv": pyarrow.csv.write_csv, ".parquet": pyarrow.parquet.write_table}


@dataclass(frozen=True)
class Restored:
    """A run's parts, loaded again; `model` is the base model until `with_adapter`."""

    path: Path
    recipe: Recipe
    task: Task
    source: ModelSource
    tokenizer: Any
    base: Base

    def with_adapter(self) -> PeftModel:
        """The base model with the run's adapter, every tensor checked.

        Raises:
            MeloraError: the adapter is damaged, or not for this base model.
        """
        return load_saved(self.base.model, self.path / ADAPTER).eval()


def restore(run: str | Path, overrides: Iterable[str] = ()) -> Restored:
    """Load a run's base model and what belongs to it.

    Raises:
        MeloraError: the run is not complete, or the base model is another one than it was trained on.
    """
    path, recipe = open_run(run)
    recipe = parse_recipe(apply_overrides(recipe.to_dict(), overrides), f"run {path}")
    trained_on = read_json(path / ENVIRONMENT).get("base_model", {})
    task = load_task(path / ADAPTER)
    source = find_model(recipe.model)
    base = load_base(source, recipe.model, task)
    found = fingerprint(base.model, base.new_modules)
    if found != trained_on.get("fingerprint"):
        raise MeloraError(
            f"run {path}: model {source.name} ({source.path}) has other weights than the one that this adapter was "
            f"trained on (fingerprint {found[:12]}, not {str(trained_on.get('fingerprint'))[:12]}); give the right one "
            "with model.name_or_path=..."
        )
    return Restored(path, recipe, task, source, load_tokenizer(source), base)


def evaluate(
    run: str | Path,
    overrides: Iterable[str] = (),
    *,
    data: str | Path | None = None,
    predictions: str | Path | None = None,
) -> dict[str, Any]:
    """Score a run on its validation rows or another file, and write evaluation.json into the run.

    Args:
        run: the run folder.
        overrides: changes to its recipe, such as data.max_length=128.
        data: the file to score on, all of it, instead of the recipe's validation rows.
        predictions: a .csv or .parquet file to write the predictions to; it must not exist.

    Returns:
        What evaluation.json holds: the data, its rows, the metrics and the loss.

    Raises:
        MeloraError: a damaged run, another base model, or bad data.
    """
    target = Path(predictions) if predictions is not None else None
    if target is not None and target.suffix not in _WRITERS:
        raise MeloraError(f"--predictions {target}: must end in {' or '.join(_WRITERS)}")
    if target is not None and target.exists():
        raise MeloraError(f"--predictions {target}: exists already; choose another file or remove it first")
    path, recipe = open_run(run)
    spec = parse_recipe(apply_overrides(recipe.to_dict(), overrides), f"run {path}").data
    split = read_validation(spec) if data is None else read_split("validation", data, spec)
    restored = restore(run, overrides)
    encoded = restored.task.encode(split, restored.tokenizer, spec)
    model = restored.with_adapter()

    def score(rows: int) -> tuple[Any, dict[str, Any]]:
        # The Trainer makes its output folder whether or not it writes anything.
        with tempfile.TemporaryDirectory() as nowhere:
            args = scoring_arguments(restored.recipe, restored.task, Path(nowhere))
            args.per_device_eval_batch_size = rows
            trainer = build_trainer(restored.task, restored.tokenizer, model=model, args=args)
            output = trainer.predict(encoded.examples, metric_key_prefix="eval")
            return output, restored.task.final_scores(trainer.model, restored.tokenizer, split, spec, rows)

    with tempfile.TemporaryDirectory() as nowhere:
        wanted = scoring_arguments(restored.recipe, restored.task, Path(nowhere)).per_device_eval_batch_size
    output, scores = with_halving(score, wanted)
    if target is not None:
        _write_table(restored.task.predictions(output.predictions), target)
    metrics = output.metrics
    names = restored.task.metric_names
    result = {
        "data": str(split.path),
        "rows": len(encoded.examples),
        "cut_rows": encoded.cut,
        "dropped_rows": encoded.dropped,
        "primary": restored.task.primary,
        "metrics": {name: metrics[f"eval_{name}"] for name in names},
        "loss": metrics["eval_loss"],
        **scores,
        "rows_per_second": round(metrics["eval_samples_per_second"], 1),
    }
    write_json(path / EVALUATION, result)
    return result


def _write_table(columns: dict[str, list[Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    _WRITERS[path.suffix](pyarrow.table(columns), str(temporary))
    temporary.replace(path)
