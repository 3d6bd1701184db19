"""melora evaluate"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..errors import MeloraError
from ..training.evaluate import evaluate
from ..training.folder import BENCHMARKS, EVALUATION
from .train import show_answers

_BENCHMARK_OPTIONS = ("data_folder", "num_fewshot", "limit", "batch_size", "baseline", "chat", "run_code")


def run(args: argparse.Namespace, console: Console) -> int:
    if args.tasks is not None:
        return _run_benchmarks(args, console)
    for name in _BENCHMARK_OPTIONS:
        if getattr(args, name) not in (None, False):
            raise MeloraError(f"--{name.replace('_', '-')}: is for benchmarks; add --tasks, e.g. --tasks mmlu")
    result = evaluate(args.run, args.overrides, data=args.data, predictions=args.predictions)
    console.print(f"{result['rows']:,} rows of {result['data']}, {result['cut_rows']} cut", markup=False)
    table = Table("metric", "value", box=None)
    table.columns[1].justify = "right"
    for name, value in {**result["metrics"], "loss": result["loss"]}.items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)
    show_answers(result, console)
    console.print(
        f"written: {args.run}/{EVALUATION}" + (f", {args.predictions}" if args.predictions else ""), markup=False
    )
    return 0


def _run_benchmarks(args: argparse.Namespace, console: Console) -> int:
    from ..training.benchmarks.card import cells
    from ..training.benchmarks.of_run import benchmark
    from ..training.benchmarks.score import Options

    for name in ("data", "predictions"):
        if getattr(args, name) is not None:
            raise MeloraError(f"--{name}: is not for benchmarks; leave it out, or leave out --tasks")
    options = Options(
        tasks=tuple(name.strip() for name in args.tasks.split(",") if name.strip()),
        data_folder=None if args.data_folder is None else Path(args.data_folder).expanduser(),
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        batch_size=16 if args.batch_size is None else args.batch_size,
        baseline=args.baseline,
        chat=args.chat,
        run_code=args.run_code,
    )
    if not options.tasks:
        raise MeloraError("--tasks: names no task; e.g. --tasks mmlu,bbh")
    scored = benchmark(args.run, options, args.overrides)
    extra = ["without the adapter"] if args.baseline else []
    table = Table("task", "metric", "shots", "rows", "score", *extra, box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in scored["scores"]:
        table.add_row(*cells(row, args.baseline))
    console.print(table)
    console.print(f"written: {args.run}/{BENCHMARKS}, and the scores into the model card", markup=False)
    return 0
