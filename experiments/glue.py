"""GLUE recipes over methods and seeds: each run once, then docs/glue.md and results/glue.

A run whose record is in results/glue is not run again; an interrupted one is resumed. Finished runs are recorded as
they come, so the records can be committed at any time.

    python -m experiments.glue --tasks cola mrpc --methods melora lora --seeds 0 1 2 --jobs 2
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melora.errors import MeloraError
from melora.training.folder import RECIPE, RESULTS
from melora.training.recipe import Recipe, load_recipe, parse_recipe
from melora.training.schema import read_yaml

from .glue_records import read_record, record_of, write_record
from .glue_report import write_report

TASKS = ("cola", "mrpc", "rte", "stsb", "sst2")
METHODS = ("melora", "lora")


@dataclass(frozen=True)
class Run:
    """One training run of the table.

    Attributes:
        recipe_file: the recipe.
        overrides: changes to it, among them its seed and output.
        recipe: both together.
        record: where its record goes.
    """

    recipe_file: Path
    overrides: tuple[str, ...]
    recipe: Recipe
    record: Path

    @property
    def folder(self) -> Path:
        return Path(self.recipe.output)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the report; returns the exit code: 1 if a run failed, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m experiments.glue", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--recipes", type=Path, default=Path("recipes/glue/minilm"), help="folder of TASK[-METHOD].yaml"
    )
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="names of recipes")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="melora: TASK.yaml; any other: TASK-METHOD.yaml")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, with one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/glue"), help="where the run folders go")
    parser.add_argument("--results", type=Path, default=Path("results/glue"), help="where the records go")
    parser.add_argument("--docs", type=Path, default=Path("docs/glue.md"), help="the report")
    parser.add_argument(
        "--report-only", action="store_true", help="train nothing; write the report of what is recorded"
    )
    parser.add_argument("--set", nargs="*", default=(), metavar="KEY=VALUE", help="changes to every recipe")
    args = parser.parse_args(argv)
    failed: list[str] = []
    code = 0
    try:
        if not args.report_only:
            if args.jobs < 1:
                raise MeloraError(f"--jobs: must be 1 or more, got {args.jobs}")
            failed = run_all(plan(args), args.jobs)
        for line in failed:
            print(f"failed: {line}", file=sys.stderr)
        write_report(args.results, args.docs)
    except MeloraError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    return 1 if failed else code


def plan(args: argparse.Namespace) -> list[Run]:
    """The runs that have no record yet, every task's first seed first.

    Raises:
        MeloraError: a recipe is missing or wrong; a record or a finished run is of another recipe than would be run.
    """
    runs = []
    for seed in args.seeds:
        for task in args.tasks:
            for method in args.methods:
                file = args.recipes / (f"{task}.yaml" if method == "melora" else f"{task}-{method}.yaml")
                output = args.runs / task / f"{method}-s{seed}"
                overrides = (*args.set, f"seed={seed}", f"output={output}")
                recipe = load_recipe(file, overrides)
                run = Run(file, overrides, recipe, args.results / task / f"{method}-s{seed}.json")
                if not is_recorded(run):
                    runs.append(run)
    return runs


def is_recorded(run: Run) -> bool:
    """Whether the run is done, by its record or by its folder, which is then recorded.

    Raises:
        MeloraError: it is done with another recipe.
    """
    if run.record.is_file():
        _check_same(run, read_record(run.record)["recipe"], run.record)
        return True
    if not (run.folder / RESULTS).is_file():
        return False
    _check_same(run, read_yaml(run.folder / RECIPE), run.folder)
    write_record(run.record, record_of(run.folder))
    return True


def _check_same(run: Run, recipe: Any, where: Path) -> None:
    done, wanted = parse_recipe(recipe, str(where)).to_dict(), run.recipe.to_dict()
    for key, value in wanted.items():
        if key != "output" and done[key] != value:
            raise MeloraError(
                f"{where}: was run with another {key} ({done[key]}, not {value}); remove it to run it again, or give "
                "other --runs and --results"
            )


def run_all(runs: Sequence[Run], jobs: int) -> list[str]:
    """Train the runs, so many at a time; returns a line for each that failed."""
    print(f"{len(runs)} runs to do, {jobs} at a time", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        return [failure for failure in pool.map(_run, runs) if failure is not None]


def _run(run: Run) -> str | None:
    log = run.folder.with_name(run.folder.name + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "melora", "train", str(run.recipe_file), *run.overrides]
    partial = run.folder.with_name(run.folder.name + ".partial")
    if partial.exists():
        command.append("--resume")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("a", encoding="utf-8") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    if code:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["no output"]
        return f"{run.folder}: exit code {code}: {last[0]} (all of it: {log})"
    record = record_of(run.folder)
    write_record(run.record, record)
    results = record["results"]
    name = results["primary"]
    print(f"{run.folder}  {name} {results['metrics'][name]:.4f}  {results['train_seconds']:.0f} s", flush=True)
    return None


if __name__ == "__main__":
    sys.exit(main())
