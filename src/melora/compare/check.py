"""What can be known to be wrong before hours are spent."""

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MeloraError
from ..training.adalora import check_run
from ..training.adapter import adapter_config, attach
from ..training.allocating import check_choice
from ..training.arguments import check_training, training_arguments
from ..training.base import load_base
from ..training.data import read_validation
from ..training.memory import adapter_bytes, disk_needed, free_disk, tokenizer_bytes
from ..training.optimizer import check_rates
from ..training.plan import count_steps
from ..training.prepare import Prepared, prepare
from ..training.source import find_model
from .jobs import Cell, Job, cells, check_distinct
from .space import RATE, spaces
from .study import Study


@dataclass(frozen=True)
class Disk:
    """Bytes that a run takes: while it runs, and once it is over."""

    running: int
    kept: int


def check_study(study: Study, wanted: Sequence[Cell], *, runs: int = 1, parallel: int = 1) -> int:
    """Check every recipe of a study, and that data, models and disk bear those that are wanted.

    Nothing is written. Each task's data are read and encoded once, each method is attached to a model of shapes; with a
    search space, once for each end and choice of it.

    Args:
        study: the study.
        wanted: the methods and tasks that have runs to make.
        runs: how many there are to make.
        parallel: how many at a time.

    Returns:
        The bytes of disk that these runs take at most.

    Raises:
        MeloraError: whatever is wrong, named by task and method.
    """
    check_distinct(job for cell in cells(study) for job in _plain_jobs(cell))
    by_task: dict[str, list[Job]] = {}
    for cell in wanted:
        by_task.setdefault(cell.task, []).extend(_jobs_of_space(cell))
    found = []
    for jobs in by_task.values():
        prepared = None
        for job in jobs:
            try:
                if prepared is None:
                    prepared = _first(job)
                found.append(_fits(job, prepared))
            except MeloraError as error:
                others = ", ".join(f"{key}={value}" for key, value in job.setting.items() if key != RATE)
                where = f"method {job.method}" + (f", search.space with {others}" if others else "")
                raise MeloraError(f"task {job.task}, {where}: {error}") from None
    needed = _disk(found, runs, parallel)
    _check_disk(study, needed)
    return needed


def _disk(found: Sequence[Disk], runs: int, parallel: int) -> int:
    at_once = min(runs, parallel)
    running, kept = (max((getattr(disk, name) for disk in found), default=0) for name in ("running", "kept"))
    return at_once * running + (runs - at_once) * kept


def check_folders(study: Study) -> None:
    """Raise a MeloraError unless the runs and the report can be written where the study wants them."""
    for key, folder in (("output", Path(study.output)), ("report", study.report_folder)):
        place = folder.expanduser().absolute()
        while not place.exists():
            place = place.parent
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            problem = "can't be written to" if place.is_dir() else "is no folder"
            raise MeloraError(f"{key} {folder}: {place} {problem}; choose another {key}")


def _check_disk(study: Study, needed: int) -> None:
    room = free_disk(study.output)
    if needed > room:
        raise MeloraError(
            f"output {study.output}: {room:,} bytes are free on its disk, and the runs take up to {needed:,}; make "
            "room or choose another output"
        )


def _plain_jobs(cell: Cell) -> list[Job]:
    """Runs of every rate and seed: what two entries could have in common."""
    rates = cell.study.rates(cell.method) or (1.0,)
    return [cell.job({RATE: rate}, seed) for rate in rates for seed in cell.study.seeds]


def _jobs_of_space(cell: Cell) -> list[Job]:
    """A run of the method, and where a space is searched one for each end or choice of each of its keys."""
    study, rates = cell.study, cell.study.rates(cell.method)
    plain = {RATE: rates[0] if rates else 1e-4}
    settings: list[dict[str, Any]] = [plain]
    if study.search.sampler == "tpe":
        for key, where in spaces(study.search, rates).items():
            ends = where if isinstance(where, list) else [where.low, where.high]
            settings += [{**plain, key: value} for value in ends if key != RATE]
    return [cell.job(setting, study.seeds[0]) for setting in settings]


def _first(job: Job) -> Prepared:
    """The task's data and model, and that there is an untouched split."""
    read_validation(dataclasses.replace(job.recipe.data, **job.score))
    return prepare(job.recipe, on_meta=True)


def _fits(job: Job, prepared: Prepared) -> Disk:
    """What the run takes of the disk.

    Raises:
        MeloraError: the model can't take the method.
    """
    cls = type(prepared.task)
    check_training(job.recipe.training, cls)
    adapter_config(job.recipe.adapter, cls.peft_type)
    base = load_base(find_model(job.recipe.model), job.recipe.model, prepared.task, on_meta=True)
    config = adapter_config(job.recipe.adapter, cls.peft_type, base.new_modules)
    check_choice(job.recipe, base.model, config)
    own = dataclasses.replace(prepared, model=attach(base.model, config, on_meta=True))
    check_rates(job.recipe, own.model)
    with tempfile.TemporaryDirectory() as nowhere:
        args = training_arguments(job.recipe, prepared.task, Path(nowhere))
        check_run(own.model, count_steps(args, len(prepared.train)))
        kept = adapter_bytes(own) + tokenizer_bytes(own)
        return Disk(disk_needed(own, args), kept)
