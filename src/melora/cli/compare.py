"""melora compare"""

import argparse
import importlib
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from rich.table import Table

from ..compare.check import check_folders, check_study
from ..compare.estimate import estimate
from ..compare.executor import Executor, Halt, LocalExecutor
from ..compare.jobs import Cell, Job, cells
from ..compare.known import Known, load_archive
from ..compare.report import write_report
from ..compare.runner import Searches, count_left, failed_jobs, records, run_study
from ..compare.state import failure_file
from ..compare.study import Study, load_study
from ..compare.words import about
from ..errors import MeloraError
from ..training.progress import clock


def run(args: argparse.Namespace, console: Console) -> int:
    study = load_study(args.study, args.overrides)
    jobs, threads = _parallel(args)
    for module in ("jinja2", "pyarrow", "scipy"):
        importlib.import_module(module)  # a report that can't be written is better known before the runs than after
    check_folders(study)
    text = Path(args.study).read_text(encoding="utf-8")
    known = Known(load_archive(study.report_folder))

    def say(line: str) -> None:
        console.print(line, markup=False)

    if args.report:
        _write(study, Searches(study, make=False), known, text, console)
        return 0
    if not args.dry_run:
        _make_output(study)
    searches = Searches(study, make=not args.dry_run)
    again = failed_jobs(study, searches, known) if args.retry_failed else []
    known = replace(known, again=frozenset(job.run for job in again))
    wanted = [cell for cell in cells(study) if _has_work(cell, searches, known)]
    with _quiet(logging.ERROR):  # what a run says of its data stands in its log
        disk = check_study(study, wanted, runs=count_left(study, searches, known), parallel=jobs)
    if args.dry_run:
        if args.ray not in (None, "", "auto"):
            importlib.import_module("melora.compare.ray_executor").check_reachable(args.ray)
        _show_estimate(study, wanted, searches, known, console, disk)
        return 0
    known = _forget_failures(again, known)
    executor: Executor
    if args.ray is None:
        executor = LocalExecutor(Path(study.output).expanduser(), jobs, threads)
    else:
        ray = importlib.import_module("melora.compare.ray_executor")
        executor = ray.RayExecutor(Path(study.output), args.ray or None, cpus=args.cpus or 1, gpus=args.gpus or 0)
        jobs = executor.parallel
    say(f"{count_left(study, searches, known)} runs to make, {jobs} at a time; a stopped study goes on when run again")
    try:
        with _sigterm():
            run_study(study, searches, known, executor, jobs, say)
    except (KeyboardInterrupt, Halt, SystemExit) as stop:
        say("stopped; finished runs are kept, the others go on when the same command is run again")
        _write(study, searches, known, text, console)
        if isinstance(stop, Halt):  # a run's process was stopped from outside
            return 143
        raise
    finally:
        executor.close()
    _write(study, searches, known, text, console)
    return 0


def _parallel(args: argparse.Namespace) -> tuple[int, int]:
    cores = os.cpu_count() or 1
    jobs = 1 if args.jobs is None else args.jobs
    if jobs < 1 or (args.threads is not None and args.threads < 1):
        raise MeloraError("--jobs and --threads: must be 1 or more")
    if args.ray is not None and (args.jobs is not None or args.threads is not None):
        raise MeloraError("--ray: Ray decides how many runs go at a time; give --cpus and --gpus of a run instead")
    if args.ray is None and (args.cpus is not None or args.gpus is not None):
        raise MeloraError("--cpus and --gpus: are for --ray; on this machine alone use --jobs and --threads")
    for name in ("cpus", "gpus"):
        value = getattr(args, name)
        if value is not None and value < (1 if name == "cpus" else 0):
            raise MeloraError(f"--{name}: must be {1 if name == 'cpus' else 0} or more, got {value:g}")
    return jobs, args.threads or max(1, cores // jobs)


def _make_output(study: Study) -> None:
    try:
        Path(study.output).expanduser().mkdir(parents=True, exist_ok=True)
    except OSError as error:  # what no look at rights foretells: a read-only disk, /proc
        raise MeloraError(f"output {study.output}: can't be made ({error.strerror}); choose another output") from None


def _has_work(cell: Cell, searches: Searches, known: Known) -> bool:
    setting = searches.setting(cell, known)
    if setting is None:
        search = searches.tpe(cell)
        found = searches.jobs(cell, known)
        return any(known.needs(job, score=False) for job in found) or (search is not None and search.left() > 0)
    return any(known.needs(job, score=True) for job in cell.chosen(setting))


def _forget_failures(again: list[Job], known: Known) -> Known:
    """These runs as if they had not failed; notes of other studies in the same output are left alone."""
    for job in again:
        failure_file(job.folder).unlink(missing_ok=True)
    return Known({run: record for run, record in known.archive.items() if run not in known.again})


def _show_estimate(
    study: Study, wanted: list[Cell], searches: Searches, known: Known, console: Console, disk: int
) -> None:
    with _quiet(logging.ERROR):
        found = estimate(study, wanted, searches, known, lambda line: console.print(line, markup=False))
    table = Table("task", "method", "runs to make", "steps a run", "seconds a step", "time", box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in found:
        numbers = (str(row.runs), str(row.steps), f"{row.step_seconds:.3f}", clock(row.seconds))
        table.add_row(row.task, row.method, *numbers)
    console.print(table)
    seconds = sum(row.seconds for row in found)
    console.print(
        f"{sum(row.runs for row in found)} runs to make: about {clock(seconds)} one after the other with "
        f"{torch.get_num_threads()} threads each, from one timed step of each method on rows of the median length; a "
        "grid that grows, long rows and a busy machine come on top"
    )
    console.print(f"they take up to {disk / 1e6:,.0f} MB of disk")
    console.print("dry run: nothing was written")


def _write(study: Study, searches: Searches, known: Known, text: str, console: Console) -> None:
    rows = records(study, searches, known)
    write_report(study.report_folder, about(study, rows, text), rows)
    counts = {status: sum(row.status == status for row in rows) for status in ("done", "failed", "missing")}
    console.print(", ".join(f"{count} runs {status}" for status, count in counts.items() if count or status == "done"))
    if counts["failed"]:
        console.print(
            "rates are chosen without the failed runs, which the report lists; --retry-failed makes them again"
        )
    console.print(f"report   {study.report_folder / 'report.html'}", markup=False)


@contextmanager
def _quiet(level: int) -> Iterator[None]:
    logger = logging.getLogger("melora")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _sigterm() -> Iterator[None]:
    """SIGTERM as an exception in the main thread, so that the runs get to write their checkpoints."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
