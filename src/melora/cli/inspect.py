"""melora inspect"""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..analysis import inspect_adapter
from ..training.folder import ADAPTER, RECIPE

_COLUMNS = ("module", "shape (out x in)", "n", "r", "equivalent rank", "rank", "effective rank", "norm", "parameters")


def run(args: argparse.Namespace, console: Console) -> int:
    path = Path(args.run)
    report = inspect_adapter(path / ADAPTER if (path / RECIPE).is_file() else path)
    if args.json:
        console.print(json.dumps(report.to_dict(), indent=2), markup=False)
        return 0
    table = Table(*_COLUMNS, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for layer in report.layers:
        table.add_row(
            layer.name,
            f"{layer.d_out} x {layer.d_in}",
            *(str(number) for number in (layer.n, layer.r, layer.equivalent_rank, layer.rank)),
            f"{layer.effective_rank:.2f}",
            f"{layer.norm:.3g}",
            f"{layer.parameters:,}",
        )
    console.print(table)
    times = f", {report.lora_parameters / report.parameters:g} times as many" if report.parameters else ""
    console.print(
        f"{report.method}: {report.parameters:,} parameters in {len(report.layers)} modules; a LoRA of equal rank has "
        f"{report.lora_parameters:,}{times}; other trained parameters (head, biases): {report.other_parameters:,}"
    )
    return 0
