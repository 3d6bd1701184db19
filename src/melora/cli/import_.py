"""melora import"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..from_lora import import_lora


def run(args: argparse.Namespace, console: Console) -> int:
    source = Path(args.adapter)
    output = Path(args.output) if args.output else source.resolve().with_name(f"{source.resolve().name}-melora")
    done = import_lora(source, output, n=args.n, r=args.r, min_energy=args.min_energy)
    table = Table("module", "shape (out x in)", "energy kept", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for layer in done.layers:
        table.add_row(layer.name, f"{layer.d_out} x {layer.d_in}", f"{layer.share:.1%}")
    console.print(table)
    console.print(
        f"MELoRA adapter  {output}: {len(done.layers)} modules, n={done.n}, r={done.r}; keeps {done.share:.1%} of the "
        "LoRA's update (squared Frobenius norm)",
        markup=False,
    )
    return 0
