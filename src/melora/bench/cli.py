"""Time one linear layer forward and backward: frozen, under PEFT's LoRA of rank r and n * r, and under MELoRA."""

import argparse
import itertools
import os
import sys
from pathlib import Path

REPETITIONS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `melora bench`; those that take several values are measured in every combination."""
    several = parser.add_argument_group("shapes (several values each: every combination is measured)")
    several.add_argument("--d-in", type=int, nargs="+", default=[768], metavar="N", help="input width (default 768)")
    several.add_argument("--d-out", type=int, metavar="N", help="output width (default: the input width)")
    several.add_argument("--tokens", type=int, nargs="+", default=[2048], metavar="N", help="rows of x (default 2048)")
    several.add_argument("--n", type=int, nargs="+", default=[8], metavar="N", help="number of minis (default 8)")
    several.add_argument("--r", type=int, nargs="+", default=[1], metavar="N", help="rank of one mini (default 1)")
    several.add_argument("--dtype", nargs="+", default=["float32"], metavar="NAME", help="default float32")
    several.add_argument(
        "--dropout", type=float, nargs="+", default=[0.0], metavar="P", help="of every adapter (default 0)"
    )
    parser.add_argument("--suite", default="layer", metavar="NAME", help="what to measure (default: layer)")
    parser.add_argument("--threads", type=int, metavar="N", help="PyTorch's threads (default: its own choice)")
    parser.add_argument(
        "--repetitions", type=int, default=REPETITIONS, metavar="N", help=f"rounds, {REPETITIONS} or more"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the rows to this new CSV file")


def run(args: argparse.Namespace) -> int:
    """Check everything, then measure shape by shape; returns the exit code.

    Raises:
        MeloraError: an option that can't be: nothing has been allocated or written by then.
    """
    import torch
    from rich.console import Console

    from ..errors import MeloraError
    from .problem import Problem
    from .report import append_csv, check_output, print_table
    from .row import Environment
    from .suites import SUITES

    if args.suite not in SUITES:
        raise MeloraError(f"--suite {args.suite} is not known: choose from {', '.join(SUITES)}")
    if args.repetitions < REPETITIONS:
        raise MeloraError(f"--repetitions {args.repetitions} is too few to tell noise from cost: {REPETITIONS} or more")
    cores = os.cpu_count() or 1
    if args.threads is not None and not 1 <= args.threads <= cores:
        raise MeloraError(f"--threads must be from 1 to {cores}, this machine's cores; got {args.threads}")
    if args.output is not None:
        check_output(args.output)
    problems = [
        Problem(d_in, d_in if args.d_out is None else args.d_out, tokens, n, r, dtype, dropout)
        for d_in, tokens, n, r, dtype, dropout in itertools.product(
            args.d_in, args.tokens, args.n, args.r, args.dtype, args.dropout
        )
    ]
    for problem in problems:
        problem.check()

    console, threads = Console(width=None if sys.stdout.isatty() else 120), torch.get_num_threads()
    torch.set_num_threads(args.threads or threads)
    try:
        environment = Environment.here()
        for problem in problems:
            contestants, rows = SUITES[args.suite](problem, args.repetitions, environment)
            if args.output is not None:
                append_csv(args.output, rows)
            print_table(console, rows, [contestant.label for contestant in contestants])
    finally:
        torch.set_num_threads(threads)
    return 0
