"""What can be known to be wrong before hours are spent."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import MeloraError
from ..training.adalora import check_run
from ..training.adapter import adapter_config, attach
from ..training.allocating import check_choice
from ..training.arguments import check_training, training_arguments
from ..training.base import load_base
from ..training.data import read_validation
from ..training.memory import disk_needed, free_disk
from ..training.optimizer import check_rates
from ..training.plan import count_steps
from ..training.prepare import Prepared, prepare
from ..training.source import find_model
from .jobs import Cell, Job, cells, check_distinct
from .space import RATE
from .study import Study


def check_study(study: Study, wanted: Sequence[Cell]) -> None:
    """Check every recipe of a study, and that data, models and disk bear those that are wanted.

    Nothing is written. Each task's data are read and encoded once, each method is attached to a model of shapes.

    Args:
        study: the study.
        wanted: the methods and tasks that have runs to make.

    Raises:
        MeloraError: whatever is wrong, named by task and method.
    """
    check_distinct(job for cell in cells(study) for job in _plain_jobs(cell))
    by_task: dict[str, list[Job]] = {}
    for cell in wanted:
        by_task.setdefault(cell.task, []).append(_any_job(cell))
    largest = 0
    for jobs in by_task.values():
        prepared = None
        for job in jobs:
            try:
                if prepared is None:
                    prepared = _first(job)
                largest = max(largest, _fits(job, prepared))
            except MeloraError as error:
                raise MeloraError(f"task {job.task}, method {job.method}: {error}") from None
    room = free_disk(study.output)
    if largest > room:
        raise MeloraError(
            f"output {study.output}: {room:,} bytes are free on its disk, and one run takes {largest:,}; make room or "
            "choose another output"
        )


def _plain_jobs(cell: Cell) -> list[Job]:
    """Runs of every rate and seed: what two entries could have in common."""
    rates = cell.study.rates(cell.method) or (1.0,)
    return [cell.job({RATE: rate}, seed) for rate in rates for seed in cell.study.seeds]


def _any_job(cell: Cell) -> Job:
    rates = cell.study.rates(cell.method)
    return cell.job({RATE: rates[0] if rates else 1e-4}, cell.study.seeds[0])


def _first(job: Job) -> Prepared:
    """The task's data and model, and that there is an untouched split."""
    read_validation(dataclasses.replace(job.recipe.data, **job.score))
    return prepare(job.recipe, on_meta=True)


def _fits(job: Job, prepared: Prepared) -> int:
    """Bytes of disk that the run takes.

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
        return disk_needed(own, args)
