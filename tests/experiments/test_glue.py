"""Tiny runs through the real command, in a table over methods."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from experiments.glue_report import table

from experiments import glue


@pytest.fixture
def command(tiny_model: Path, tmp_path: Path) -> list[str]:
    """Arguments for two tiny runs: MRPC with MELoRA and with LoRA."""
    folder = tmp_path / "glue" / "mrpc"
    folder.mkdir(parents=True)
    for name, rows in (("train", 16), ("validation", 8)):
        columns = {"sentence1": ["good film", "dull plot"] * (rows // 2), "sentence2": ["a film"] * rows}
        pyarrow.parquet.write_table(
            pyarrow.table({**columns, "label": [1, 0] * (rows // 2)}), folder / f"{name}.parquet"
        )
    adapters = {
        "mrpc": {"method": "melora", "r": 1, "n": 4, "target_modules": ["query"]},
        "mrpc-lora": {"method": "lora", "r": 4, "target_modules": ["query"]},
    }
    for stem, adapter in adapters.items():
        values = {
            "model": {"name_or_path": str(tiny_model)},
            "task": "glue/mrpc",
            "data": {"path": str(tmp_path / "glue"), "max_length": 16},
            "adapter": adapter,
            "training": {"num_train_epochs": 1, "per_device_train_batch_size": 2, "use_cpu": True},
            "output": "runs/x",
        }
        (tmp_path / f"{stem}.yaml").write_text(yaml.safe_dump(values))
    places = {
        "recipes": tmp_path,
        "runs": tmp_path / "runs",
        "results": tmp_path / "results",
        "docs": tmp_path / "glue.md",
    }
    options = [part for key, place in places.items() for part in (f"--{key}", str(place))]
    return [*options, "--tasks", "mrpc", "--seeds", "3", "--jobs", "2"]


def test_runs_are_made_once_recorded_and_reported(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs" / "mrpc" / "lora-s3.partial").mkdir(parents=True)  # killed in its first moment
    assert glue.main(command) == 0
    records = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "results" / "mrpc").iterdir()}
    assert set(records) == {"melora-s3", "lora-s3"}
    assert all(record["recipe"]["seed"] == 3 for record in records.values())
    rows = list(csv.DictReader((tmp_path / "results" / "results.csv").read_text().splitlines()))
    assert [(row["method"], row["metric"]) for row in rows] == [
        ("lora r=4", "accuracy"),
        ("lora r=4", "f1"),
        ("melora 4x1", "accuracy"),
        ("melora 4x1", "f1"),
    ]
    assert float(rows[0]["score"]) == records["lora-s3"]["results"]["metrics"]["accuracy"]
    page = (tmp_path / "glue.md").read_text()
    for text in ("| mrpc | melora 4x1 | accuracy 0.", ", f1 ", "| 3 |", "contaminated", "1 thread(s)"):
        assert text in page

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a finished run was run again")

    monkeypatch.setattr(glue.subprocess, "run", refuse)
    assert glue.main(command) == 0
    (tmp_path / "results" / "mrpc" / "lora-s3.json").unlink()
    assert glue.main(command) == 0  # its folder is still there
    assert (tmp_path / "results" / "mrpc" / "lora-s3.json").is_file()
    capsys.readouterr()
    assert glue.main([*command, "--set", "training.learning_rate=0.5"]) == 2
    told = capsys.readouterr().err
    assert "melora-s3.json: was run with another training" in told
    assert told.count("\n") == 1


def test_a_run_that_fails_is_told_and_the_others_go_on(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = yaml.safe_load((tmp_path / "mrpc.yaml").read_text())
    recipe["adapter"]["n"] = 7
    (tmp_path / "mrpc.yaml").write_text(yaml.safe_dump(recipe))
    assert glue.main(command) == 1
    told = capsys.readouterr().err
    assert "melora-s3: exit code 2: error: " in told
    assert "n=7" in told
    assert (tmp_path / "results" / "mrpc" / "lora-s3.json").is_file()


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["--report-only"], "no records of finished runs yet"),
        (["--jobs", "0"], "--jobs: must be 1 or more, got 0"),
        (["--tasks", "none"], "none.yaml"),
    ],
)
def test_bad_input(command: list[str], extra: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert glue.main([*command, *extra]) == 2
    assert told in capsys.readouterr().err


def test_the_table_is_over_seeds_and_keeps_recipes_apart() -> None:
    lines = table([record(0, 0.5), record(1, 0.7), record(0, 0.9, rate=1e-3)])[2:]
    assert len(lines) == 2
    assert "| accuracy 0.600 ± 0.141 | 0, 1 | 0.002 |" in lines[1]
    assert "| accuracy 0.900 | 0 | 0.001 |" in lines[0]


def record(seed: int, score: float, rate: float = 2e-3) -> dict[str, Any]:
    return {
        "recipe": {
            "seed": seed,
            "output": f"runs/{seed}",
            "adapter": {"r": 1, "n": 8},
            "training": {"learning_rate": rate},
        },
        "results": {
            "task": "glue/rte",
            "primary": "accuracy",
            "metrics": {"accuracy": score},
            "learning_rate": rate,
            "parameters": {"adapter": 10, "head": 2},
            "rows": {"train": 5, "validation": 5},
        },
    }
