"""The run folder: complete or not there.

A run works in `<output>.partial` beside `output` and renames it at the end, so a folder called `output` is always a
finished run. A run that is killed or fails leaves the partial folder with its checkpoints, and `--resume` goes on from
the newest good one; a run that fails before its first checkpoint leaves nothing behind.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from ..errors import MeloraError
from .checkpoints import all_checkpoints, clear_unfinished, newest_good
from .lock import FileLock
from .manifest import sync_files, sync_folder
from .progress import finite
from .ranks import rank, world_size
from .recipe import Recipe, parse_recipe
from .schema import read_yaml

RECIPE = "recipe.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
RESULTS = "results.json"
CURVES = "curves.png"
ALLOCATION = "allocation.json"
ALLOCATION_PLOT = "allocation.png"
ADAPTER = "adapter"
CHECKPOINTS = "checkpoints"
EVALUATION = "evaluation.json"
BENCHMARKS = "benchmarks.json"


class RunFolder:
    """One run's place on disk while it is made. Only one process makes it at a time.

    Args:
        recipe: gives the output folder.
        overwrite: replace a finished run at the end, and (without `resume`) throw an interrupted one away now.
        resume: go on with an interrupted run of the same recipe, its output apart, from its newest checkpoint that is
            as it was written; from the start if it was interrupted before its first.

    Attributes:
        checkpoint: the one to go on from; None to start.

    Raises:
        MeloraError: the folder exists, or there is nothing (or something else) to resume, or another process makes the
            run. Nothing is written by this.
    """

    def __init__(self, recipe: Recipe, *, overwrite: bool = False, resume: bool = False) -> None:
        self.final = Path(recipe.output).expanduser()
        self.partial = self.final.with_name(self.final.name + ".partial")
        self.recipe = recipe
        self.overwrite = overwrite
        self.resume = resume
        self._lock = FileLock(self.partial / RECIPE)
        self._check_final()
        if self._lock.is_taken():
            raise self._taken()
        self.checkpoint = self._find_checkpoint() if resume else None
        if self.partial.exists() and not (resume or overwrite):
            raise MeloraError(
                f"output {self.final}: a run in {self.partial} is interrupted; go on with --resume, throw it away with "
                "--overwrite, or choose another output=..."
            )

    def _taken(self) -> MeloraError:
        return MeloraError(
            f"output {self.final}: another process is making this run in {self.partial}; wait for it, or choose "
            "another output=..."
        )

    def _check_final(self) -> None:
        if not self.final.exists() or (self.final.is_dir() and not any(self.final.iterdir())):
            return
        if not self.overwrite:
            unfinished = " (with --resume too, to go on with the run that replaces it)" if self.partial.exists() else ""
            raise MeloraError(
                f"output {self.final}: exists already; choose another output=... or pass --overwrite{unfinished}"
            )
        if not (self.final / RECIPE).is_file():
            raise MeloraError(f"output {self.final}: is no run of melora, so it is not overwritten; choose another")

    def _find_checkpoint(self) -> Path | None:
        if not self.partial.is_dir():
            raise MeloraError(
                f"output {self.final}: no interrupted run in {self.partial} to resume; start without --resume"
            )
        checkpoints = self.partial / CHECKPOINTS
        if not (self.partial / RECIPE).is_file() and not all_checkpoints(checkpoints):
            return None  # killed in its first moment
        before = parse_recipe(read_yaml(self.partial / RECIPE))
        for key, value in self.recipe.to_dict().items():
            if key != "output" and before.to_dict()[key] != value:  # it was found there, moved or written otherwise
                raise MeloraError(
                    f"output {self.final}: the interrupted run in {self.partial} has another {key} in its recipe; "
                    "resume it with that recipe, or choose another output=..."
                )
        self._check_processes()
        newest = newest_good(checkpoints)
        if newest is None and all_checkpoints(checkpoints):
            raise MeloraError(
                f"output {self.final}: no checkpoint in {checkpoints} is as it was written, so there is nothing to go "
                "on from; start the run again with --overwrite, or choose another output=..."
            )
        return newest

    def _check_processes(self) -> None:
        file = self.partial / ENVIRONMENT
        before = read_json(file).get("processes", 1) if file.is_file() else world_size()
        if before != world_size():
            raise MeloraError(
                f"output {self.final}: the interrupted run in {self.partial} was made by {before} processes, not "
                f"{world_size()}: its global batch and its place in the data would change; resume it with {before}"
            )

    def check_shared(self) -> None:
        """Check, on a rank for which the main one made the folder, that it is there.

        Raises:
            MeloraError: this machine does not see it.
        """
        if not (self.partial / RECIPE).is_file():
            raise MeloraError(
                f"output {self.final}: rank {rank()} does not see {self.partial}, which the main process made; choose "
                "a folder that all machines share"
            )

    def create(self) -> None:
        """Make the partial folder with the recipe in it, or take up the one to go on with.

        Raises:
            MeloraError: another process makes the same run.
        """
        if self.checkpoint is not None:
            self._take_lock()
            clear_unfinished(self.partial / CHECKPOINTS)
            self._cut_metrics(self.checkpoint)
            return
        if (self.overwrite or self.resume) and self.partial.exists():
            shutil.rmtree(self.partial)
        try:
            self.partial.mkdir(parents=True)
        except FileExistsError:
            raise self._taken() from None
        write_text(self.partial / RECIPE, self.recipe.to_yaml())
        self._take_lock()

    def _take_lock(self) -> None:
        if not self._lock.take():
            raise self._taken()

    def _cut_metrics(self, checkpoint: Path) -> None:
        """Take back what was logged after the checkpoint, and what a kill or a power cut left half written."""
        history = read_json(checkpoint / "trainer_state.json")["log_history"]
        file = self.partial / METRICS
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n") if file.is_file() else []
        whole = [line for line in lines[:-1] if _is_json(line)][: len(history)]
        lost = [json.dumps(finite(event)) for event in history[len(whole) :]]
        write_text(file, "".join(f"{line}\n" for line in [*whole, *lost]))

    def finish(self) -> None:
        """Bring all to the disk and rename the partial folder to its final name, in place of a run to be overwritten.

        A kill between the two renames leaves the partial folder, which --resume finishes, and no folder of this name.
        """
        sync_files(self.partial)
        old = self.final.with_name(f".{self.final.name}.old")
        if self.final.exists():
            shutil.rmtree(old, ignore_errors=True)
            self.final.rename(old)
        self.partial.rename(self.final)
        recipe = self.recipe.to_yaml()
        if (self.final / RECIPE).read_text(encoding="utf-8") != recipe:  # begun under another output
            write_text(self.final / RECIPE, recipe)
            sync_files(self.final)
        sync_folder(self.final.parent)
        if old.exists():
            shutil.rmtree(old)
        self.release()

    def abandon(self) -> Path | None:
        """After a failure: the last good checkpoint, or None; without any checkpoint the partial folder is removed."""
        checkpoints = self.partial / CHECKPOINTS
        if not all_checkpoints(checkpoints):
            shutil.rmtree(self.partial, ignore_errors=True)
        self.release()
        return newest_good(checkpoints, tell=False)

    def release(self) -> None:
        """Leave the run to other processes."""
        self._lock.release()


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


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False
