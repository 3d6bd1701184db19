"""`accelerate launch` with two processes on CPUs, over gloo, against one process with the same global batch."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from melora import MeloraError
from melora.training.evaluate import evaluate
from melora.training.recipe import parse_recipe
from melora.training.run import train

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("rank_worker.py")
# fp32 sums in another order: two halves of a batch apart, then their mean. Adam divides by the gradient's own size, so
# what differs in the last bits of a loss can differ by more in a weight.
LOSS, WEIGHT = 1e-5, 1e-4


@dataclass(frozen=True)
class Launch:
    """What two processes did: one result a command and rank, the paths that each rank wrote, the first one's run."""

    results: list[list[dict[str, Any]]]
    written: list[set[Path]]
    run: Path


@pytest.fixture(scope="session")
def recipe_path(steady_recipe: dict[str, Any]) -> Path:
    file = Path(steady_recipe["output"]).with_name("recipe.yaml")
    file.write_text(yaml.safe_dump(steady_recipe))
    return file


@pytest.fixture(scope="session")
def one(steady_run: Path) -> Path:
    """The run of one process."""
    return steady_run


@pytest.fixture(scope="session")
def launched(recipe_path: Path, request: pytest.FixtureRequest) -> Launch:
    """A whole run; one that SIGTERM stops, resumed; a dry run; a mistake. Parametrised by the config's name."""
    folder = recipe_path.with_name(request.param)
    folder.mkdir()
    recipe, rows = str(recipe_path), "training.per_device_train_batch_size=4"
    whole, stopped = f"output={folder / 'whole'}", f"output={folder / 'stopped'}"
    commands: list[tuple[list[str], int | None]] = [
        (["train", recipe, whole, rows], None),
        (["train", recipe, stopped, rows], 17),
        (["train", recipe, stopped, rows, "--resume"], None),
        (["train", recipe, f"output={folder / 'dry'}", rows, "--dry-run"], None),
        (["train", recipe, f"output={folder / 'wrong'}", "data.train=none.parquet"], None),
    ]
    file = folder / "commands.json"
    file.write_text(json.dumps([{"arguments": words, "sigterm": step} for words, step in commands]))
    done = launch(request.param, str(WORKER), str(file), str(folder))
    assert done.returncode == 0, done.stderr
    seen = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]
    results = [list(ranks) for ranks in zip(*(one["results"] for one in seen), strict=True)]
    written = [{Path(path) for path in one["written"] if Path(path).is_relative_to(folder)} for one in seen]
    return Launch(results, written, folder / "whole")


both = pytest.mark.parametrize("launched", ["ddp", "fsdp2"], indirect=True)


def launch(config: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    file = ROOT / "recipes" / "distributed" / f"{config}.yaml"
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(file),
        "--main_process_port",
        "0",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, env=environment)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def events(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


@both
def test_losses_are_those_of_one_process(one: Path, launched: Launch) -> None:
    alone, together = events(one), events(launched.run)
    assert [event["step"] for event in alone] == [event["step"] for event in together]
    for name in ("loss", "eval_loss"):
        pairs = [(a[name], b[name]) for a, b in zip(alone, together, strict=True) if name in a]
        assert len(pairs) >= 4
        assert max(abs(a - b) for a, b in pairs) < LOSS


@both
def test_scores_are_exactly_those_of_one_process(one: Path, launched: Launch) -> None:
    alone, together = read(one / "results.json"), read(launched.run / "results.json")
    for key in ("metrics", "best_epoch", "steps", "batch", "rows", "parameters"):
        assert alone[key] == together[key]
    assert together["best_epoch"] < together["epochs"]  # so the best checkpoint was loaded, not just kept
    assert evaluate(launched.run)["metrics"] == together["metrics"]


@both
def test_the_saved_adapter_is_that_of_one_process_in_full_shape(one: Path, launched: Launch) -> None:
    alone, together = weights(one), weights(launched.run)
    checkpoints = list((launched.run / "checkpoints").glob("*/adapter_model.safetensors"))
    assert checkpoints
    for saved in (together, *map(load_file, checkpoints)):
        assert {name: value.shape for name, value in saved.items()} == {name: v.shape for name, v in alone.items()}
    assert max(float((alone[name] - together[name]).abs().max()) for name in alone) < WEIGHT


@both
def test_no_rank_writes_what_another_writes(launched: Launch) -> None:
    main, other = launched.written
    assert not main & other
    assert {path.name for path in other} == {"rng_state_1.pth"}
    assert {"results.json", "recipe.yaml", "metrics.jsonl", "rng_state_0.pth"} <= {path.name for path in main}


@both
def test_only_the_main_rank_speaks(launched: Launch) -> None:
    for main, other in launched.results:
        assert (other["out"], other["err"]) == ("", "")
        assert main["code"] == other["code"]
    whole, dry = launched.results[0][0], launched.results[3][0]
    assert whole["out"].count("run      ") == 1
    assert "96 rows to train on, 29 to validate; 96 steps" in dry["out"]
    assert not list(launched.run.parent.glob("dry*"))


@both
def test_sigterm_on_one_rank_saves_on_all_and_resume_ends_at_the_same_weights(launched: Launch) -> None:
    stopped, resumed = launched.results[1][0], launched.results[2][0]
    assert stopped["code"] == 143
    assert "stopped by SIGTERM after step 17, which is saved" in stopped["err"]
    assert resumed["code"] == 0, resumed["err"]
    run = launched.run.with_name("stopped")
    assert read(run / "results.json")["resumed"]
    whole, gone_on = weights(launched.run), weights(run)
    assert all(torch.equal(whole[name], gone_on[name]) for name in whole)
    shown = [(event["step"], event.get("loss"), event.get("eval_loss")) for event in events(launched.run)]
    assert shown == [(event["step"], event.get("loss"), event.get("eval_loss")) for event in events(run)]


@both
def test_a_mistake_is_told_once(launched: Launch) -> None:
    main, other = launched.results[4]
    assert (main["code"], other["code"]) == (2, 2)
    assert re.fullmatch(r"error: data\.train none\.parquet: no such file .*\n", main["err"])
    assert not list(launched.run.parent.glob("wrong*"))


def test_a_run_is_resumed_with_as_many_processes(one: Path, recipe_path: Path, tmp_path: Path) -> None:
    partial = shutil.copytree(one, tmp_path / "run.partial")
    environment = read(partial / "environment.json")
    (partial / "environment.json").write_text(json.dumps({**environment, "processes": 2}))
    recipe = {**yaml.safe_load(recipe_path.read_text()), "output": str(tmp_path / "run")}
    (partial / "recipe.yaml").write_text(parse_recipe(recipe).to_yaml())
    with pytest.raises(MeloraError, match=r"was made by 2 processes, not 1: .* resume it with 2"):
        train(parse_recipe(recipe), resume=True)


def test_the_module_that_accelerate_launches(recipe_path: Path, tmp_path: Path) -> None:
    done = launch("ddp", "-m", "melora", "train", str(recipe_path), f"output={tmp_path / 'run'}", "data.text=[nothing]")
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if "error: " in line and "traceback" not in line]
    assert len(told) == 1
    assert "no column 'nothing'; the columns are" in told[0]
