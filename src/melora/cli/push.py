"""melora push"""

import argparse

from rich.console import Console

from ..training.folder import open_run
from ..training.push import check_hub, push


def run(args: argparse.Namespace, console: Console) -> int:
    open_run(args.run)
    check_hub(args.repo)
    console.print(f"uploaded to {push(args.run, args.repo, private=args.private)}", markup=False)
    return 0
