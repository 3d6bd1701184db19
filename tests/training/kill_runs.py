"""Trains a recipe again and again, kills it with SIGKILL at drawn moments, resumes it, compares with a run left alone.

    OMP_NUM_THREADS=1 python tests/training/kill_runs.py RECIPE.yaml --folder NEW_FOLDER --kills 50 --seed 0

A run is killed one to four times in a row, then left to finish. Two kills of five wait for a checkpoint being written,
one of ten for the final adapter being written, the others fall anywhere in the run's duration. Prints JSON: the counts,
and for each finished run whether its log and adapter are those of the run left alone, bit for bit.

Every run is a fork of this process, which has the libraries loaded and no threads; pytest's own would not do for that.
"""

import argparse
import collections
import gc
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

# Loaded once, for all forks.
import matplotlib.backends.backend_agg  # noqa: F401
import scipy.stats  # noqa: F401
import torch
import transformers.models.bert.modeling_bert  # noqa: F401

from melora.training.checkpoints import UNFINISHED, newest_good, step_of
from melora.training.folder import ADAPTER, CHECKPOINTS, METRICS, RESULTS
from melora.training.recipe import Recipe, load_recipe
from melora.training.run import train

TIMES = ("seconds", "runtime", "per_second")
LIMIT = 120.0  # seconds that no run takes


def start(recipe: Recipe, *, resume: bool, log: Path) -> int:
    """Fork a run; returns its process id. The child's exit code is 0 if it trained to the end."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        train(recipe, resume=resume)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, until: float | None = None, sign: Path | None = None, times: int = 1) -> int | None:
    """Wait for the child's end, a moment, or the sign (a path) to appear for the given time; its exit code or None."""
    limit, was, seen = time.monotonic() + LIMIT, False, 0
    while time.monotonic() < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() >= until:
            return None
        if sign is not None:
            is_there = sign.exists()
            seen += is_there and not was
            was = is_there
            if seen == times:
                return None
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    raise RuntimeError(f"a run took more than {LIMIT:g} seconds")


def log_of(run: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return [{key: value for key, value in event.items() if not key.endswith(TIMES)} for event in events]


def adapter_of(run: Path) -> bytes:
    return (run / ADAPTER / "adapter_model.safetensors").read_bytes()


class Killer:
    """Kills runs of a recipe.

    Args:
        recipe: to train.
        folder: where runs, and what they print, go.
        seed: of the moments.
    """

    def __init__(self, recipe: Recipe, folder: Path, seed: int) -> None:
        self.recipe, self.folder = recipe, folder
        self.draw = random.Random(seed)
        self.counts: collections.Counter[str] = collections.Counter()
        self.resumed: collections.Counter[int] = collections.Counter()
        began = time.monotonic()
        self.reference = self.output("alone")
        code = wait(start(self.at(self.reference), resume=False, log=folder / "alone.log"))
        if code != 0:
            raise RuntimeError((folder / "alone.log").read_text())
        self.duration = time.monotonic() - began
        history = log_of(self.reference)
        self.saves = sum("eval_loss" in event for event in history) - 1  # the last one scores what is kept

    def output(self, name: str) -> Path:
        return self.folder / name

    def at(self, output: Path) -> Recipe:
        return Recipe(**{**vars(self.recipe), "output": str(output)})

    def run(self, name: str, kills: int) -> dict[str, Any]:
        """Make one run, killed up to `kills` times; returns how it compares."""
        output = self.output(name)
        partial = output.with_name(output.name + ".partial")
        log = self.folder / f"{name}.log"
        for _ in range(kills):
            if output.exists():
                break
            self.kill_once(output, partial, log)
        while not output.exists():
            code = wait(start(self.at(output), resume=self.look(partial), log=log))
            if code != 0:
                raise RuntimeError(f"{name} ended with {code}: {log.read_text()}")
        self.counts["runs"] += 1
        return {
            "run": name,
            "log_is_equal": log_of(output) == log_of(self.reference),
            "adapter_is_equal": adapter_of(output) == adapter_of(self.reference),
            "scores_are_equal": scores_of(output) == scores_of(self.reference),
        }

    def look(self, partial: Path) -> bool:
        """Whether there is something to resume; counts from where."""
        if not partial.exists():
            return False
        newest = newest_good(partial / CHECKPOINTS, tell=False)
        self.resumed[step_of(newest) if newest else 0] += 1
        return True

    def kill_once(self, output: Path, partial: Path, log: Path) -> None:
        unfinished = partial / CHECKPOINTS / UNFINISHED
        how = self.draw.choices(["anywhere", "in a save", "at the end"], [5, 4, 1])[0]
        child = start(self.at(output), resume=self.look(partial), log=log)
        if how == "anywhere":
            code = wait(child, until=time.monotonic() + self.draw.uniform(0, self.duration))
        elif how == "in a save":
            code = wait(child, sign=unfinished, times=self.draw.randint(1, self.saves))
        else:
            code = wait(child, sign=partial / ADAPTER)
        if code is None and how != "anywhere":
            code = wait(child, until=time.monotonic() + self.draw.uniform(0, 0.02))
        if code is None:
            os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            return
        if code != -signal.SIGKILL:
            raise RuntimeError(f"{output.name} ended with {code}: {log.read_text()}")
        self.counts["kills"] += 1
        self.counts["kills inside a save"] += unfinished.exists()
        self.counts["kills while the results were written"] += (partial / ADAPTER).exists()
        self.counts["kills before the first checkpoint"] += partial.exists() and not newest_good(
            partial / CHECKPOINTS, tell=False
        )


def scores_of(run: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((run / RESULTS).read_text())
    measured = ("train_seconds", "step_seconds", "peak_memory", "resumed")
    return {key: value for key, value in results.items() if key not in measured}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    gc.freeze()  # or every fork's collector would copy the libraries' objects
    args.folder.mkdir(parents=True, exist_ok=True)
    killer = Killer(load_recipe(args.recipe), args.folder, args.seed)
    runs = []
    while killer.counts["kills"] < args.kills:
        left = args.kills - killer.counts["kills"]
        runs.append(killer.run(f"run-{len(runs)}", min(killer.draw.randint(1, 4), left)))
    report = {
        "seconds alone": round(killer.duration, 2),
        **killer.counts,
        "resumed from step": dict(sorted(killer.resumed.items())),
        "compared": runs,
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
