"""melora evaluate"""

import argparse

from rich.console import Console
from rich.table import Table

from ..training.evaluate import evaluate
from ..training.folder import EVALUATION
from .train import show_answers


def run(args: argparse.Namespace, console: Console) -> int:
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
