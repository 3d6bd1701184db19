"""The run folder: complete or not there.

A run works in `<output>.partial` beside `output` and renames it at the end, so a folder called `output` is always a
finished run. A run that is killed or fails leaves the partial folder with its checkpoints, and `--resume` goes on from
the last one; if there is no checkpoint yet, nothing is left behind.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from ..errors import MeloraError
from .recipe import Recipe, parse_recipe
from .schema import read_yaml

RECIPE = "recipe.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
RESULTS = "results.json"
CURVES = "curves.png"
ADAPTER = "adapter"
CHECKPOINTS = "checkpoints"
EVALUATION = "evaluation.json"


class RunFolder:
    """One run's place on disk while it is made.

    Args:
        recipe: gives the output folder.
        overwrite: replace a finished run at the end, and throw an interrupted one away now.
        resume: go on with an interrupted run of the same recipe.

    Raises:
        MeloraError: the folder exists, or there is nothing (or something else) to resume. Nothing is written by this.
    """

    def __init__(self, recipe: Recipe, *, overwrite: bool = False, resume: bool = False) -> None:
        self.final = Path(recipe.output).expanduser()
        self.partial = self.final.with_name(self.final.name + ".partial")
        self.recipe = recipe
        self.overwrite = overwrite
        self._check_final()
        self.checkpoint = self._find_checkpoint() if resume else None
        if self.partial.exists() and not (resume or overwrite):
            resumable = self._last_checkpoint() is not None
            state = "interrupted; go on with --resume" if resumable else "without a checkpoint yet; wait for it"
            raise MeloraError(
                f"output {self.final}: a run in {self.partial} is {state}, throw it away with --overwrite, or choose "
                "another output=..."
            )

    def _last_checkpoint(self) -> Path | None:
        checkpoints = self.partial / CHECKPOINTS
        last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
        return None if last is None else Path(last)

    def _check_final(self) -> None:
        if not self.final.exists() or (self.final.is_dir() and not any(self.final.iterdir())):
            return
        if not self.overwrite:
            raise MeloraError(f"output {self.final}: exists already; choose another output=... or pass --overwrite")
        if not (self.final / RECIPE).is_file():
            raise MeloraError(f"output {self.final}: is no run of melora, so it is not overwritten; choose another")

    def _find_checkpoint(self) -> Path:
        last = self._last_checkpoint()
        if last is None:
            raise MeloraError(
                f"output {self.final}: no interrupted run in {self.partial} to resume; start without --resume"
            )
        before = parse_recipe(read_yaml(self.partial / RECIPE))
        for key, value in self.recipe.to_dict().items():
            if before.to_dict()[key] != value:
                raise MeloraError(
                    f"output {self.final}: the interrupted run in {self.partial} has another {key} in its recipe; "
                    "resume it with that recipe, or choose another output=..."
                )
        return last

    def create(self) -> None:
        """Make the partial folder with the recipe in it.

        Raises:
            MeloraError: another process makes the same run.
        """
        if self.checkpoint is not None:
            self._drop_metrics_after(int(self.checkpoint.name.rsplit("-", 1)[1]))
            return
        if self.overwrite and self.partial.exists():
            shutil.rmtree(self.partial)
        try:
            self.partial.mkdir(parents=True)
        except FileExistsError:
            raise MeloraError(
                f"output {self.final}: another run is being made in {self.partial}; wait for it"
            ) from None
        (self.partial / RECIPE).write_text(self.recipe.to_yaml(), encoding="utf-8")

    def _drop_metrics_after(self, step: int) -> None:
        file = self.partial / METRICS
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        write_text(file, "".join(f"{line}\n" for line in kept))

    def finish(self) -> None:
        """Rename the partial folder to its final name, replacing a run that was to be overwritten."""
        old = self.final.with_name(f".{self.final.name}.old-{os.getpid()}")
        if self.final.exists():
            self.final.rename(old)
        self.partial.rename(self.final)
        if old.exists():
            shutil.rmtree(old)

    def abandon(self) -> Path | None:
        """After a failure: the last checkpoint, or None, in which case the partial folder is removed."""
        last = self._last_checkpoint()
        if last is None:
            shutil.rmtree(self.partial, ignore_errors=True)
        return last


def open_run(path: str | Path) -> tuple[Path, Recipe]:
    """A finished run's folder and recipe.

    Raises:
        MeloraError: not the folder of a finished run.
    """
    run = Path(path).expanduser()
    if not (run / RECIPE).is_file() or not (run / ADAPTER).is_dir():
        partial = run.with_name(run.name + ".partial")
        hint = (
            f"; it was interrupted: finish it with `melora train ... --resume` ({partial})" if partial.is_dir() else ""
        )
        raise MeloraError(f"run {run}: no {RECIPE} and {ADAPTER}/ in it; give a folder that `melora train` made{hint}")
    return run, parse_recipe(read_yaml(run / RECIPE), f"recipe {run / RECIPE}")


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file of a run.

    Raises:
        MeloraError: missing or damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MeloraError(f"{path}: no such file; the run folder is not complete, train again") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MeloraError(f"{path}: not valid JSON ({error}); the run folder is damaged, train again") from None
    if not isinstance(values, dict):
        raise MeloraError(f"{path}: holds no keys; the run folder is damaged, train again")
    return values


def write_json(path: Path, values: Any) -> None:
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write through a temporary name, so that the file is never half there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
