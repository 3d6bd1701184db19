"""The dry run's estimate of memory beside the peak of a real run, recipe by recipe, each in a fresh process.

    python benchmarks/memory.py recipes/quickstart.yaml ... --output results/memory/NAME.json

A run takes three steps, on the recipe's longest rows by length, and one evaluation; that is enough for a peak. Its peak
is the resident set's largest size (ru_maxrss) of the process, libraries and mapped files included. CPU only.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

_SHORT = ("training.max_steps=3", "training.eval_strategy=steps", "training.eval_steps=3", "training.use_cpu=true")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="recipes to estimate and to run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of all of them")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--part", choices=("estimate", "run"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part is not None:
        part = {"estimate": _estimate, "run": _run}[args.part]
        args.output.write_text(json.dumps(part(args.recipes[0], args.set)))
        return
    rows = []
    for recipe in args.recipes:
        row = {"recipe": recipe, **{part: _in_process(part, recipe, args.set) for part in ("estimate", "run")}}
        row["ratio"] = row["estimate"]["total"] / row["run"]["peak"]
        rows.append(row)
        print(
            f"{recipe}: {row['estimate']['total'] / 1e6:.0f} MB estimated, {row['run']['peak'] / 1e6:.0f} MB measured"
        )
    libraries = {name: metadata.version(name) for name in ("torch", "transformers", "peft", "trl")}
    found = {"machine": platform.platform(), "python": platform.python_version(), **libraries, "set": args.set}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({**found, "rows": rows}, indent=2) + "\n")


def _in_process(part: str, recipe: str, changes: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "part.json"
        sets = [word for change in changes for word in ("--set", change)]
        subprocess.run([sys.executable, __file__, recipe, *sets, "--output", output, "--part", part], check=True)
        found: dict[str, Any] = json.loads(output.read_text())
        return found


def _estimate(recipe: str, changes: list[str]) -> dict[str, int]:
    from melora.training.arguments import training_arguments
    from melora.training.memory import estimate_memory
    from melora.training.prepare import prepare
    from melora.training.recipe import load_recipe

    prepared = prepare(load_recipe(recipe, [*_SHORT, *changes]), on_meta=True)
    with tempfile.TemporaryDirectory() as nowhere:
        return estimate_memory(prepared, training_arguments(prepared.recipe, prepared.task, Path(nowhere)))


def _run(recipe: str, changes: list[str]) -> dict[str, int]:
    from melora.training.prepare import Prepared
    from melora.training.recipe import load_recipe
    from melora.training.run import train

    loaded = 0

    def on_ready(prepared: Prepared, arguments: Any) -> None:
        nonlocal loaded
        loaded = _peak()
        for part in (prepared.train, prepared.validation):
            part.sort(key=lambda example: -len(example["input_ids"]))

    with tempfile.TemporaryDirectory() as folder:
        output = f"output={folder}/run"
        order = "training.train_sampling_strategy=sequential"
        train(load_recipe(recipe, [*_SHORT, *changes, order, output]), on_ready=on_ready)
    return {"loaded": loaded, "peak": _peak()}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
