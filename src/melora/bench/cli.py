"""Measure what an adapter costs in time and memory beside the frozen base, PEFT's LoRA and other peers."""

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `melora bench`; those that take several values are measured in every combination.

    No defaults here: presets.py has them, and presets stand between them and what is given.
    """
    what = parser.add_argument_group("what")
    names = "layer, compile, model, decode, multi, memory, scaling"
    what.add_argument("--suite", dest="suites", nargs="+", metavar="NAME", help=f"{names}, or all (default: layer)")
    what.add_argument("--preset", metavar="NAME", help="targets: the grid with stated targets, hours")
    what.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, nothing about speed")
    several = parser.add_argument_group("shapes (several values each: every combination is measured)")
    several.add_argument("--d-in", type=int, nargs="+", metavar="N", help="input width (default 768)")
    several.add_argument("--d-out", type=int, metavar="N", help="output width (default: the input width)")
    several.add_argument("--tokens", type=int, nargs="+", metavar="N", help="rows of x (default 2048)")
    several.add_argument("--n", type=int, nargs="+", metavar="N", help="number of minis (default 8)")
    several.add_argument("--r", type=int, nargs="+", metavar="N", help="rank of one mini (default 1)")
    several.add_argument("--dtype", dest="dtypes", nargs="+", metavar="NAME", help="default float32")
    several.add_argument(
        "--dropout", dest="dropouts", type=float, nargs="+", metavar="P", help="of every adapter (default 0)"
    )
    several.add_argument(
        "--batch", dest="batches", type=int, nargs="+", metavar="N", help="decode: sequences at once (1 32)"
    )
    several.add_argument("--adapters", type=int, nargs="+", metavar="K", help="multi: in one batch (1 8 64 512)")
    several.add_argument("--model", dest="models", nargs="+", metavar="NAME", help="minilm, smollm2, tiny")
    peers = "lora, lora-r, learned, shuffle, gralora, bdlora, vera, miss, loop, einsum, dense"
    parser.add_argument("--peers", nargs="+", metavar="NAME", help=f"beside MELoRA: {peers} (default: lora-r lora)")
    parser.add_argument("--device", metavar="NAME", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, metavar="N", help="PyTorch's threads (default: its own choice)")
    parser.add_argument("--repetitions", type=int, metavar="N", help="rounds, 20 (default) or more")
    parser.add_argument(
        "--output", type=Path, metavar="PATH", help="rows to a new FILE.csv; or a new folder: rows, report.md, plots"
    )
    parser.add_argument("--resume", action="store_true", help="add to --output the groups that it does not have yet")
    parser.add_argument("--dry-run", action="store_true", help="print the groups and the time they will take")
    parser.add_argument(
        "--report", type=Path, nargs="+", metavar="FILE.csv", help="measure nothing: tables of these files, on stdout"
    )


def run(args: argparse.Namespace) -> int:
    """Check everything, then measure group by group; returns the exit code.

    Raises:
        MeloraError: an option that can't be: nothing has been allocated or written by then.
    """
    import torch
    from rich.console import Console

    from .markdown import report
    from .options import Options
    from .runner import measure
    from .store import read_rows
    from .suites import SUITES

    if args.report is not None:
        print(report([row for file in args.report for row in read_rows(file)]), end="")
        return 0
    options = Options.of(args, list(SUITES))
    groups = [group for name in options.suites for group in SUITES[name](options)]
    for group in groups:
        group.check(options.device)
    console, threads = Console(width=None if sys.stdout.isatty() else 120), torch.get_num_threads()
    torch.set_num_threads(options.threads or threads)
    try:
        measure(groups, options, console, dry_run=args.dry_run)
    finally:
        torch.set_num_threads(threads)
    return 0
