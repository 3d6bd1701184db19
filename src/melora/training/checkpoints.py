"""Checkpoints on the disk: whole or not there, the newest good one found again, old ones removed with care.

A checkpoint is written into UNFINISHED, synced, closed with a manifest and renamed to checkpoint-STEP. So a folder of
that name is complete unless something damaged it later, and the manifest tells that.
"""

import logging
import re
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from .manifest import read_manifest, sync_folder, verify, write_manifest

logger = logging.getLogger(__name__)

UNFINISHED = ".unfinished"
_NAME = re.compile(r"checkpoint-(\d+)")


def step_of(checkpoint: str | Path) -> int:
    """The step that a checkpoint's name says."""
    match = _NAME.fullmatch(Path(checkpoint).name)
    if match is None:
        raise ValueError(f"{checkpoint}: not the name of a checkpoint")
    return int(match[1])


def all_checkpoints(folder: Path) -> list[Path]:
    """Every checkpoint in the folder, good or not, the newest first."""
    found = (path for path in folder.glob("checkpoint-*") if path.is_dir() and _NAME.fullmatch(path.name))
    return sorted(found, key=step_of, reverse=True)


def newest_good(folder: Path, *, tell: bool = True) -> Path | None:
    """The newest checkpoint that is as it was written, and so is the best checkpoint so far that it points to.

    Args:
        folder: holds the checkpoints; it need not exist.
        tell: log a warning for each newer one that is skipped, with the reason.
    """
    for checkpoint in all_checkpoints(folder):
        try:
            best = verify(checkpoint)["best_step"]
            if best is not None and best != step_of(checkpoint):
                _verify_best(folder / f"checkpoint-{best}")
        except ValueError as error:
            if tell:
                logger.warning("checkpoint %s is skipped: %s", checkpoint, error)
        else:
            return checkpoint
    return None


def _verify_best(best: Path) -> None:
    try:
        verify(best)
    except ValueError as error:
        raise ValueError(f"its best checkpoint so far, {best.name}, is damaged: {error}") from None


def finish_checkpoint(folder: Path, step: int, best_step: int | None) -> Path:
    """Close the checkpoint that lies in the folder's UNFINISHED and give it its name, in place of any that has it.

    Args:
        folder: holds the checkpoints.
        step: of the new one.
        best_step: the step of the best checkpoint so far, which the run needs at its end; None if it needs none.
    """
    unfinished, final = folder / UNFINISHED, folder / f"checkpoint-{step}"
    new = unfinished / final.name
    write_manifest(new, step=step, best_step=best_step)
    if final.exists():  # damaged, and written anew by a run that went on from an older one
        final.rename(unfinished / "replaced")
    new.rename(final)
    sync_folder(folder)
    clear_unfinished(folder)
    return final


def clear_unfinished(folder: Path) -> None:
    """Remove what an interrupted save left."""
    if (folder / UNFINISHED).exists():
        shutil.rmtree(folder / UNFINISHED)


def rotate(folder: Path, newest: Path, limit: int | None) -> None:
    """Remove old checkpoints: all but the `limit` newest complete ones and the best checkpoints that these point to.

    What is not complete counts for nothing, so the last good one is never removed for a damaged one's sake.

    Args:
        folder: holds the checkpoints.
        newest: the one just written, which stays.
        limit: how many to keep; None or less than 1 keeps all.
    """
    if limit is None or limit < 1:
        return
    kept: set[Path] = set()
    for checkpoint, manifest in islice(_complete(folder, newest), limit):
        kept.add(checkpoint)
        if manifest["best_step"] is not None:
            kept.add(folder / f"checkpoint-{manifest['best_step']}")
    for checkpoint in all_checkpoints(folder):
        if checkpoint not in kept:
            # Renamed first: what is half removed must not look like a checkpoint.
            (folder / UNFINISHED).mkdir(exist_ok=True)
            checkpoint.rename(folder / UNFINISHED / checkpoint.name)
            clear_unfinished(folder)


def size_of_newest(folder: Path) -> int | None:
    """Bytes of the newest complete checkpoint, or None."""
    for checkpoint in all_checkpoints(folder):
        try:
            return sum(int(file["size"]) for file in verify(checkpoint, content=False)["files"].values())
        except ValueError:
            continue
    return None


def _complete(folder: Path, newest: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    yield newest, read_manifest(newest)
    for checkpoint in all_checkpoints(folder):
        if step_of(checkpoint) < step_of(newest):
            try:
                yield checkpoint, verify(checkpoint, content=False)
            except ValueError:
                continue
