"""`adapter.init_weights` on the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_lora_ga_is_trained_and_inspected(melora: Callable[..., Any], recipe_file: Path, tmp_path: Path) -> None:
    changes = ("adapter.init_weights=lora_ga", "adapter_search.batches=2", "training.num_train_epochs=1")
    done = melora("train", recipe_file, *changes, "training.learning_rate=0.01")
    assert done.code == 0, done.err
    assert "the adapter starts from the gradient of 2 batches" in done.out
    assert "adapter  256 parameters" in done.out
    done = melora("inspect", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    layers = json.loads(done.out)["layers"]
    assert [(layer["r"], layer["equivalent_rank"], layer["parameters"]) for layer in layers] == [(1, 8, 64)] * 4


def test_a_dry_run_takes_no_gradients(melora: Callable[..., Any], recipe_file: Path) -> None:
    done = melora("train", recipe_file, "adapter.init_weights=lora_ga", "--dry-run")
    assert done.code == 0, done.err
    assert done.err == ""
    assert "dry run: nothing was written" in done.out


def test_mistakes_are_one_line(melora: Callable[..., Any], recipe_file: Path, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    for changes, told in (
        (["adapter.init_weights=pisa"], "init_weights must be True, False, 'gaussian', 'pissa'"),
        (
            ["adapter.init_weights=pissa", "adapter.r=9"],
            "takes 9 directions of each mini's block for r=9, and a block is 8",
        ),
        (["adapter.init_weights=pissa", "adapter_search.batches=2"], "adapter_search: is for adapter.method: melora"),
    ):
        done = melora("train", recipe_file, *changes)
        assert done.code == 2
        assert told in done.err
        assert [line for line in done.err.splitlines() if line.startswith("error")] == done.err.splitlines()[-1:]
        assert set(tmp_path.rglob("*")) == before
