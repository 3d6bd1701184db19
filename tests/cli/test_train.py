import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def before(tmp_path: Path, recipe_file: Path) -> set[Path]:
    """What is in the folder before the command."""
    return set(tmp_path.rglob("*"))


def test_train_shows_what_it_does_in_plain_lines(melora: Callable[..., Any], recipe_file: Path, tmp_path: Path) -> None:
    done = melora("train", recipe_file, "--overwrite", "training.num_train_epochs=1", "training.logging_steps=4")
    assert done.code == 0, done.err
    assert done.err == ""
    assert "adapter  256 parameters (LoRA of equal rank: 1,024); head 33" in done.out
    assert "data     96 rows to train on, 32 to validate; 12 steps" in done.out
    assert "step 4/12  epoch 0.33  loss " in done.out
    assert "rows/s" in done.out
    assert " left" in done.out
    assert "epoch 1.00  validation loss " in done.out
    assert "kept epoch 1 after " in done.out
    assert "\x1b" not in done.out
    assert "\r" not in done.out
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 12


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    melora: Callable[..., Any], recipe_file: Path, tmp_path: Path, before: set[Path]
) -> None:
    done = melora("train", recipe_file, "--dry-run", "adapter.n=8")
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines() if "attention.self" in line]
    assert len(rows) == 4
    assert rows[0] == ["bert.encoder.layer.0.attention.self.query", "32", "x", "32", "8", "1", "8", "64"]
    assert "36 steps" in done.out
    assert re.search(r"^memory   about [\d.]+ [MG]B, [\d.]+ [MG]B free: process .*weights", done.out, re.M)
    assert set(tmp_path.rglob("*")) == before


AUTO = ("adapter.n=auto", "adapter.target_modules=[query, dense]", "adapter_search.batches=3")


def test_n_auto_is_chosen_shown_and_kept(
    melora: Callable[..., Any], recipe_file: Path, lively_model: Path, tmp_path: Path
) -> None:
    model = f"model.name_or_path={lively_model}"
    done = melora("train", recipe_file, model, *AUTO, "training.num_train_epochs=1")
    assert done.code == 0, done.err
    assert "choosing n of each module by the gradient of 3 batches" in done.out
    shown = {row[0]: row[4:] for row in map(str.split, done.out.splitlines()) if row and "encoder.layer" in row[0]}
    run = tmp_path / "run"
    kept = json.loads((run / "allocation.json").read_text())
    assert (kept["batches"], kept["budget"], kept["seed"]) == (3, None, 0)
    rows = {row["name"]: row for row in kept["modules"] if "encoder.layer" in row["name"]}
    assert shown == {
        name: [f"{row['effective_rank']:.1f}", str(row["n"]), "1", str(row["parameters"])] for name, row in rows.items()
    }
    assert len({row["n"] for row in kept["modules"]}) > 1
    assert (run / "allocation.png").read_bytes().startswith(b"\x89PNG")
    assert "n: auto" in (run / "recipe.yaml").read_text()
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert isinstance(config["n"], int)
    inspected = melora("inspect", run)
    assert inspected.code == 0
    in_files = {row[0]: row[4] for row in map(str.split, inspected.out.splitlines()) if row and "layer" in row[0]}
    assert in_files == {name: str(row["n"]) for name, row in rows.items()}
    assert melora("evaluate", run).code == 0
    assert "n or r chosen by | gradients before training" in (run / "adapter" / "README.md").read_text()


def test_a_budget_chooses_r_too(melora: Callable[..., Any], recipe_file: Path, tmp_path: Path) -> None:
    dry = melora("train", recipe_file, "--dry-run", *AUTO, "adapter_search.budget=2500")
    assert dry.code == 0, dry.err
    rows = [line.split() for line in dry.out.splitlines() if "attention.self" in line]
    assert rows[0] == ["bert.encoder.layer.0.attention.self.query", "32", "x", "32", *("auto",) * 4]
    assert "n and r of each module, chosen at the start of training by the gradient of 3 batches, for at m" in dry.out
    done = melora("train", recipe_file, *AUTO, "adapter_search.budget=2500", "training.num_train_epochs=1")
    assert done.code == 0, done.err
    kept = json.loads((tmp_path / "run" / "allocation.json").read_text())
    assert 2500 - 96 < kept["parameters"] <= 2500
    assert json.loads((tmp_path / "run" / "results.json").read_text())["parameters"]["adapter"] == kept["parameters"]


def test_a_dry_run_says_that_n_is_to_be_chosen(
    melora: Callable[..., Any], recipe_file: Path, tmp_path: Path, before: set[Path]
) -> None:
    done = melora("train", recipe_file, "--dry-run", "adapter.n=auto")
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines() if "attention.self" in line]
    assert rows[0] == ["bert.encoder.layer.0.attention.self.query", "32", "x", "32", "auto", "1", "auto", "64"]
    assert "auto     n of each module, chosen at the start of training by the gradient of 8 batches\n" in done.out
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("head", "adapter  0 parameters; head 33"),
        ("bias", "adapter  640 parameters; head 33"),
        ("full", ", 0 frozen parameters"),
    ],
)
def test_a_dry_run_of_a_method_without_an_adapter(
    melora: Callable[..., Any], recipe_file: Path, tmp_path: Path, before: set[Path], method: str, told: str
) -> None:
    done = melora("train", recipe_file, "--dry-run", f"adapter={{method: {method}}}")
    assert done.code == 0, done.err
    assert told in done.out
    assert ("equivalent rank" in done.out) == (method != "head")  # no table without modules
    assert set(tmp_path.rglob("*")) == before


def test_keys_lists_the_recipes_keys(melora: Callable[..., Any]) -> None:
    done = melora("train", "--keys")
    assert done.code == 0
    assert "max_length: 256" in done.out


BAD = [
    (["adapter.n=5"], "n=5"),
    (["adapter.n=0"], "adapter.n: must be a finite number above 0, got 0"),
    (["adapter.n=-4"], "adapter.n: must be a finite number above 0, got -4"),
    (["adapter.n=1000000000"], "n must be a whole number from 1 to"),
    (["adapter.n=four"], "adapter.n: must be of type int or 'auto', got 'four'"),
    (["adapter.n=auto", "adapter_search.budget=10"], "budget=10 is below 256, what r=1 takes in these 4 modules"),
    (["adapter.n=auto", "adapter_search.budget=0"], "adapter_search.budget: must be 1 or more, got 0"),
    (["adapter.n=auto", "adapter_search.budget=lots"], "adapter_search.budget: must be of type int"),
    (["adapter.n=auto", "adapter_search.batches=0"], "adapter_search.batches: must be 1 or more, got 0"),
    (["adapter.n=auto", "adapter_search.batch=4"], "adapter_search: unknown key 'batch'; did you mean batches?"),
    (["adapter.n=auto", "adapter_search=8"], "adapter_search: must hold keys (a mapping), got 8"),
    (["adapter_search.batches=4"], "adapter_search: is for adapter.method: melora with adapter.n: auto, with a"),
    (["adapter={method: lora, r: 2}", "adapter_search.budget=4000"], "adapter_search: is for adapter.method: melora"),
    (["adapter.n=auto", "adapter_search.budget=4000", "adapter.rank_pattern={query: 2}"], "rank_pattern gives it"),
    (["adapter.n=auto", "adapter.n_pattern={query: 5}"], "n=5 does not divide both d_in=32 and d_out=32"),
    (["adapter.n=auto", "adapter.target_modules=[word_embeddings]"], "word_embeddings is a Embedding, and gradients"),
    (["adapter.r=0"], "adapter.r: must be a finite number above 0, got 0"),
    (["adapter.r=-1"], "adapter.r: must be a finite number above 0, got -1"),
    (["adapter.r=1000000000"], "r must be a whole number from 1 to"),
    (["adapter.r=one"], "adapter.r: must be of type int, got 'one'"),
    (["adapter.lora_alpha=.nan"], "adapter.lora_alpha: must be a finite number above 0, got nan"),
    (["adapter.target_modules=[qury]"], "query"),
    (["adapter.metod=lora"], "adapter: unknown key 'metod'"),
    (["adapter.method=lola"], "adapter.method: unknown method 'lola'; did you mean"),
    (["trainning.seed=1"], "unknown key 'trainning'; did you mean training?"),
    (["training.learning_rat=1"], "training: unknown key 'learning_rat'; did you mean learning_rate"),
    (["training.learning_rate=.nan"], "training.learning_rate: must be a finite number above 0"),
    (["training.lr_scheduler_type=liner"], "training: "),
    (["data.label=ratin"], "no column 'ratin'; the columns are text, rating, mood, kind (did you mean rating?)"),
    (["data.train=none.parquet"], "data.train none.parquet: no such file"),
    (["data.label=mood"], "row 1: label 'bad' is not a number; regression needs numbers"),
    (["task=classify"], "task: unknown task 'classify'; there is classification, regression"),
    (["model.name_or_path=./nowhere"], "model.name_or_path: no model './nowhere' found; tried the folder"),
    (["output="], "output"),
    (["seed"], "override 'seed': must read key=value"),
]


@pytest.mark.parametrize(("overrides", "told"), BAD, ids=[" ".join(overrides) for overrides, _ in BAD])
def test_bad_input_is_one_line_and_code_2_and_writes_nothing(
    melora: Callable[..., Any],
    recipe_file: Path,
    tmp_path: Path,
    before: set[Path],
    overrides: list[str],
    told: str,
) -> None:
    done = melora("train", recipe_file, *overrides)
    assert done.code == 2, done.err
    assert told in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("label", "told"), [(-1, "out of range"), (7, "is none of the 2 training labels"), (0.5, "whole")]
)
def test_labels_out_of_range_are_named_with_their_row(
    melora: Callable[..., Any], recipe_file: Path, tmp_path: Path, label: float, told: str
) -> None:
    file = tmp_path / "validation.csv"
    file.write_text(f"text,kind\na film,1\nthe plot,{label}\n")
    done = melora("train", recipe_file, "task=classification", "data.label=kind", f"data.validation={file}")
    assert done.code == 2, done.err
    assert f"error: {file}, row 2: label {label}" in done.err
    assert told in done.err
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_exists(melora: Callable[..., Any], recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    done = melora("train", recipe_file)
    assert done.code == 2
    assert "exists already; choose another output=... or pass --overwrite" in done.err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_no_recipe(melora: Callable[..., Any]) -> None:
    assert melora("train").err.startswith("error: no recipe given; e.g. `melora train")
    assert melora("train", "none.yaml").err.startswith("error: recipe none.yaml: no such file")
