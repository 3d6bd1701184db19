import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import nn


@pytest.mark.parametrize("part", ["", "adapter"])
def test_inspect_measures_every_layer(melora: Callable[..., Any], trained_run: Path, part: str) -> None:
    done = melora("inspect", trained_run / part)
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines() if "attention.self" in line]
    assert len(rows) == 4
    assert rows[0][:8] == ["bert.encoder.layer.0.attention.self.query", "32", "x", "32", "4", "1", "4", "4"]
    assert "MELORA: 256 parameters in 4 modules; a LoRA of equal rank has 1,024, 4 times as many" in done.out
    assert "(head, biases): 33" in done.out


def test_json(melora: Callable[..., Any], trained_run: Path) -> None:
    report = json.loads(melora("inspect", trained_run, "--json").out)
    assert report["parameters"] == 256
    assert len(report["layers"]) == 4
    assert 1 <= report["layers"][0]["effective_rank"] <= 4
    assert report["layers"][0]["row_overlap"]["chance"] == 1 / 8
    assert report["off_diagonal"] == 0.0
    assert report["column_overlap"]["pairs"] == 4 * 6
    assert "outputs" not in report


def test_diversity_is_a_second_table_where_it_is_asked_for(melora: Callable[..., Any], trained_run: Path) -> None:
    assert "diagonal" not in melora("inspect", trained_run).out
    done = melora("inspect", trained_run / "adapter", "--diversity")
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines() if "attention.self" in line]
    assert len(rows) == 8
    assert rows[4][1:4] == ["0.0%", "of", "4"]
    assert rows[4][6].startswith("0.125±")
    assert "off the diagonal: 0.0% of ||dW||^2; without any preference 75.0% for 4" in done.out
    assert "over 24 pairs of minis, 0.125±" in done.out
    assert "outputs" not in done.out


def test_outputs_on_a_batch(melora: Callable[..., Any], trained_run: Path, tiny_data: Path) -> None:
    done = melora("inspect", trained_run, "--outputs")
    assert done.code == 0, done.err
    assert "likeness of outputs (linear CKA): " in done.out
    assert f"of 32 rows of {tiny_data / 'validation.parquet'}" in done.out
    data = tiny_data / "train.csv"
    report = json.loads(melora("inspect", trained_run, "--data", data, "--rows", 9, "--json").out)
    assert (report["outputs"]["rows"], report["outputs"]["data"]) == (9, str(data))
    assert report["outputs"]["layers"].keys() == {layer["name"] for layer in report["layers"]}


def test_a_lora_against_blocks(melora: Callable[..., Any], lora_folder: Path) -> None:
    done = melora("inspect", lora_folder, "--blocks", 4)
    assert done.code == 0, done.err
    assert "% of ||dW||^2; without any preference 75.0% for 4" in done.out
    assert "overlap of A (row spaces): no pair of minis" in done.out
    alone = melora("inspect", lora_folder, "--diversity")
    assert "nothing to measure (one block each; --blocks N sets N)" in alone.out


@pytest.fixture
def lora_folder(tmp_path: Path) -> Path:
    model = get_peft_model(nn.Sequential(nn.Linear(16, 32)), LoraConfig(target_modules=["0"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def test_a_picture(melora: Callable[..., Any], trained_run: Path, lora_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "diversity.png"
    done = melora("inspect", trained_run, "--outputs", "--plot", file)
    assert done.code == 0, done.err
    assert f"written: {file}" in done.out
    with Image.open(file) as picture:
        assert picture.size == (3 * 675, 540)  # rows, columns and outputs; off the diagonal is 0 by construction
    assert [path.name for path in file.parent.iterdir()] == ["diversity.png"]
    assert melora("inspect", lora_folder, "--blocks", 2, "--plot", file).code == 0
    with Image.open(file) as picture:
        assert picture.size == (675, 540)
    nothing = melora("inspect", lora_folder, "--plot", tmp_path / "none" / "x.png")
    assert nothing.code == 2
    assert "there is nothing to draw" in nothing.err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--plot", "x.pdf"], "error: --plot x.pdf: must end in .png"),
        (["--blocks", "0"], "error: blocks must be a whole number from 1"),
        (["--blocks", "5"], "error: blocks=5: bert.encoder.layer.0.attention.self.query is 32 x 32, and 5 does not"),
        (["--rows", "0"], "error: rows: must be 1 or more, got 0; e.g. --rows 64"),
        (["--data", "gone.csv"], "error: data.validation gone.csv: no such file"),
    ],
)
def test_bad_options(melora: Callable[..., Any], trained_run: Path, options: list[str], told: str) -> None:
    done = melora("inspect", trained_run, *options)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(told)
    assert done.err.count("\n") == 1


def test_outputs_need_a_run(melora: Callable[..., Any], trained_run: Path) -> None:
    done = melora("inspect", trained_run / "adapter", "--outputs")
    assert done.code == 2
    assert done.err.startswith("error: --outputs: needs a run folder")
