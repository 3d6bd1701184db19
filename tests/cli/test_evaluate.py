import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from safetensors.torch import load_file, save_file


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the trained run that a test may change."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


def test_evaluate_prints_and_writes_the_scores(melora: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    done = melora("evaluate", run, "--predictions", tmp_path / "predictions.parquet")
    assert done.code == 0, done.err
    score = json.loads((run / "results.json").read_text())["metrics"]["pearson"]
    assert f"{score:.4f}" in done.out
    assert json.loads((run / "evaluation.json").read_text())["metrics"]["pearson"] == pytest.approx(score, abs=1e-6)
    assert pyarrow.parquet.read_table(tmp_path / "predictions.parquet").num_rows == 32


def test_evaluate_on_another_file(melora: Callable[..., Any], run: Path, tiny_data: Path) -> None:
    done = melora("evaluate", run, "--data", tiny_data / "train.csv", "data.max_length=8")
    assert done.code == 0, done.err
    assert f"96 rows of {tiny_data / 'train.csv'}" in done.out


def damage(run: Path, kind: str) -> None:
    weights = run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = next(key for key in tensors if "melora_A" in key)
    if kind == "missing tensor":
        del tensors[first]
    elif kind == "extra tensor":
        tensors[first.replace("layer.0", "layer.7")] = tensors[first].clone()
    elif kind == "mis-shaped tensor":
        tensors[first] = tensors[first][:, :, :-1].contiguous()
    elif kind == "empty tensor":
        tensors[first] = tensors[first][:0]
    save_file(tensors, weights, metadata={"format": "pt"})
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "no weights":
        weights.unlink()
    elif kind == "no task":
        (run / "adapter" / "melora_task.json").unlink()
    elif kind == "no adapter":
        shutil.rmtree(run / "adapter")
    elif kind == "broken environment":
        (run / "environment.json").write_text("{")


@pytest.mark.parametrize(
    "kind",
    [
        "missing tensor",
        "extra tensor",
        "mis-shaped tensor",
        "empty tensor",
        "truncated",
        "no weights",
        "no task",
        "no adapter",
        "broken environment",
    ],
)
def test_a_damaged_run_is_refused(melora: Callable[..., Any], run: Path, kind: str) -> None:
    damage(run, kind)
    done = melora("evaluate", run)
    assert done.code == 2, done.err
    assert done.err.count("\n") == 1
    assert str(run) in done.err
    assert not (run / "evaluation.json").exists()


def test_what_is_no_run(melora: Callable[..., Any], tmp_path: Path) -> None:
    done = melora("evaluate", tmp_path)
    assert done.code == 2
    assert "no recipe.yaml and adapter/ in it; give a folder that `melora train` made" in done.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--predictions", "x.txt"], "--predictions x.txt: must end in .csv or .parquet"),
        (["--data", "none.csv"], "data.validation none.csv: no such file"),
        (["data.label=x"], "no column 'x'"),
        (["data.lable=x"], "data: unknown key 'lable'; did you mean label?"),
    ],
)
def test_bad_options(melora: Callable[..., Any], trained_run: Path, options: list[str], told: str) -> None:
    done = melora("evaluate", trained_run, *options)
    assert done.code == 2
    assert told in done.err


def test_predictions_do_not_replace_a_file(melora: Callable[..., Any], trained_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("mine")
    done = melora("evaluate", trained_run, "--predictions", file)
    assert done.code == 2
    assert "exists already" in done.err
    assert file.read_text() == "mine"
