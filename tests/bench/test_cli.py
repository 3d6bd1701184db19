import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from melora.bench.group import Group
from melora.errors import MeloraError

Run = Callable[..., int]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_combination_gives_a_row_per_contestant(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rows.csv"
    assert run("--n", "1", "4", "--dropout", "0", "0.1", "--d-out", "64", "--output", str(output)) == 0
    rows = rows_of(output)
    # n=1: rank r and rank n * r are the same LoRA, measured once; and so is rank r of both.
    assert [row["contestant"] for row in rows] == ["base", "melora", "melora", "lora", "lora"] * 2
    melora = rows[7]
    assert (melora["d_in"], melora["d_out"], melora["n"], melora["r"], melora["dropout"]) == (
        "32",
        "64",
        "4",
        "1",
        "0.1",
    )
    assert (melora["rank"], melora["parameters"], melora["threads"]) == ("4", "96", "1")
    assert melora["machine"]
    assert melora["torch"] == torch.__version__
    assert all(float(row["ratio_p20"]) <= float(row["ratio_p50"]) <= float(row["ratio_p80"]) for row in rows)
    shown = capsys.readouterr().out
    assert "2 groups, about" in shown
    assert "layer 32 -> 64, 16 tokens, float32, dropout 0.1" in shown
    assert shown.count("MELoRA 4x1") == 2


def test_a_folder_gets_rows_report_and_plots(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run("--suite", "layer", "multi", "--output", str(output))
    assert sorted(path.name for path in output.iterdir()) == [
        "layer.csv", "layer.png", "multi.csv", "multi.png", "report.md"
    ]  # fmt: skip
    assert (output / "layer.png").read_bytes().startswith(b"\x89PNG")
    assert "| MELoRA 4x1 |" in (output / "report.md").read_text()


def test_existing_results_are_not_touched(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    output.write_text("mine")
    with pytest.raises(MeloraError, match="exists: choose another name"):
        run("--output", str(output))
    with pytest.raises(MeloraError, match="has no column date"):
        run("--output", str(output), "--resume")
    assert output.read_text() == "mine"


def test_resume_measures_only_what_is_missing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rows.csv"
    real, measured = Group.measure, []

    def stopped(group: Group, *args: object) -> object:
        if len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(group.facts.tokens)
        return real(group, *args)

    monkeypatch.setattr(Group, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        run("--tokens", "8", "16", "--output", str(output))
    before = output.read_text()
    measured.clear()
    run("--tokens", "8", "16", "--output", str(output), "--resume")
    assert measured == [16]
    assert "1 groups, about" in capsys.readouterr().out
    assert output.read_text().startswith(before)
    measured.clear()
    run("--tokens", "8", "16", "--peers", "lora-r", "lora", "--output", str(output), "--resume")
    assert measured == []
    run("--tokens", "8", "--peers", "miss", "--output", str(output), "--resume")  # another contestant: measured
    assert measured == [8]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_dry_run_writes_and_measures_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Group, "measure", lambda *_: pytest.fail("measured"))
    run("--suite", "all", "--dry-run", "--output", "out")
    shown = capsys.readouterr().out
    for words in ("layer 32 -> 32", "compiled layer", "tiny all-linear", "mixed batch", "adapter file, export"):
        assert words in shown
    assert list(tmp_path.iterdir()) == []


def test_report_reads_files_and_measures_nothing(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--output", str(tmp_path / "a.csv"))
    capsys.readouterr()
    run("--report", str(tmp_path / "a.csv"))
    assert capsys.readouterr().out.startswith("## Layer\n")
    with pytest.raises(MeloraError, match=r"none.csv: can't be read"):
        run("--report", str(tmp_path / "none.csv"))


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
        (("--batch", "0"), r"--batch must be a whole number from 1"),
        (("--adapters", "0"), r"--adapters must be a whole number from 1"),
        (("--repetitions", "1"), r"--repetitions 1 is too few"),
        (("--threads", "0"), r"--threads must be from 1 to"),
        (("--threads", "100000"), r"--threads must be from 1 to"),
        (("--suite", "speed"), r"--suite speed is not known: choose from layer, compile"),
        (("--preset", "big"), r"--preset big is not known: choose from targets, quick"),
        (("--peers", "dora"), r"--peers dora is not known: choose from lora"),
        (("--model", "gpt5"), r"--model gpt5 is not known: choose from minilm"),
        (("--device", "tpu"), r"--device tpu is not known: choose cpu or cuda"),
        (("--resume",), r"--resume needs --output"),
        (("--output", "no/such/folder/rows.csv"), r"there is no folder no/such/folder"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_built_or_written(
    run: Run, words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Group, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(MeloraError, match=message) as caught:
        run(*words)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
