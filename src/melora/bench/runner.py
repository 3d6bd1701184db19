"""The groups of a run, one after the other: skipped when they are in the output already, else measured and written."""

import gc

from rich.console import Console

from .estimate import gflops, seconds, spoken
from .group import Group
from .markdown import report
from .options import Options
from .plots import plot
from .report import print_table
from .row import Environment
from .store import Store, replace


def measure(groups: list[Group], options: Options, console: Console, dry_run: bool) -> None:
    """Print how long it will take, then measure; with `dry_run`, print it for every group and stop.

    Raises:
        MeloraError: the output can't be made: nothing has been measured by then.
    """
    store = Store(options.output, options.resume) if options.output else None
    environment = Environment.here(options.device)
    left = [
        group
        for group in groups
        if store is None or not store.has(group.facts.suite, group.facts.title, group.labels, environment)
    ]
    speeds = {dtype: gflops(dtype, options.device) for dtype in {group.facts.dtype for group in left}}
    durations = [seconds(group, options.repetitions, speeds[group.facts.dtype]) for group in left]
    if dry_run:
        for group, duration in zip(left, durations, strict=True):
            console.print(f"{spoken(duration):>8}  {group.facts.title}, {len(group.peers)} contestants")
    done = f", {len(groups) - len(left)} are there already" if len(left) < len(groups) else ""
    console.print(f"{len(left)} groups, about {spoken(sum(durations))} on {environment.threads} threads{done}")
    if dry_run:
        return
    for group in left:
        rows = group.measure(options.repetitions, environment)
        if store is not None:
            store.add(group.facts.suite, rows)
        print_table(console, rows, group.facts.title, group.labels)
        gc.collect()  # a model and its hooks are a cycle: the next group needs the memory
    if store is not None and not store.is_file and store.files():
        written = store.reread()
        replace(store.path / "report.md", report(written))
        for name in plot(written, store.path):
            console.print(f"plot: {name}")
