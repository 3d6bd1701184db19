import argparse
import csv
from pathlib import Path

import pytest
import torch

from melora.bench import cli
from melora.errors import MeloraError

SMALL = ["--d-in", "32", "--tokens", "16", "--threads", "1"]


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return cli.run(parser.parse_args([*SMALL, *words]))


def test_every_combination_gives_a_row_per_contestant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "rows.csv"
    threads = torch.get_num_threads()
    assert run("--n", "1", "4", "--dropout", "0", "0.1", "--d-out", "64", "--output", str(output)) == 0
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    # n=1: rank r and rank n * r are the same LoRA, measured once.
    assert [row["contestant"] for row in rows] == ["base", "lora", "melora"] * 2 + [
        "base",
        "lora",
        "lora",
        "melora",
    ] * 2
    last = rows[-1]
    assert (last["d_in"], last["d_out"], last["n"], last["r"], last["dropout"]) == ("32", "64", "4", "1", "0.1")
    assert (last["rank"], last["parameters"], last["threads"]) == ("4", "96", "1")
    assert last["machine"]
    assert last["torch"] == torch.__version__
    assert all(float(row["ratio_p20"]) <= float(row["ratio_p50"]) <= float(row["ratio_p80"]) for row in rows)
    shown = capsys.readouterr().out
    assert "32 -> 64, 16 tokens, n x r = 4 x 1, float32, dropout 0.1" in shown
    assert shown.count("MELoRA, rank 4") == 2
    assert torch.get_num_threads() == threads


def test_existing_results_are_not_touched(tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    output.write_text("mine")
    with pytest.raises(MeloraError, match="exists: choose another name"):
        run("--output", str(output))
    assert output.read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--n", "8", "5"), r"n=5 does not divide both d_in=32 and d_out=32; choose n from 1, 2, 4, 8, 16, 32"),
        (("--n", "0"), r"--n must be a whole number from 1"),
        (("--r", "-1"), r"--r must be a whole number from 1"),
        (("--r", "33"), r"r=33 is larger than the weight"),
        (("--d-out", "1000000000"), r"--d-out must be a whole number from 1"),
        (("--tokens", "0"), r"--tokens must be at least 1, got 0"),
        (("--tokens", "1000000000000"), r"needs about .* GiB, .* GiB are free"),
        (("--dtype", "float33"), r"--dtype float33 is not known: choose from float32, bfloat16"),
        (("--dropout", "nan"), r"--dropout must be at least 0 and below 1, got nan"),
        (("--dropout", "1"), r"--dropout must be at least 0 and below 1, got 1.0"),
        (("--repetitions", "3"), r"--repetitions 3 is too few"),
        (("--threads", "0"), r"--threads must be from 1 to"),
        (("--threads", "100000"), r"--threads must be from 1 to"),
        (("--suite", "speed"), r"--suite speed is not known: choose from layer"),
        (("--output", "no/such/folder/rows.csv"), r"there is no folder no/such/folder"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_built_or_written(
    words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("melora.bench.suites.layer.build", lambda problem: pytest.fail("built something"))
    with pytest.raises(MeloraError, match=message) as caught:
        run(*words)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
