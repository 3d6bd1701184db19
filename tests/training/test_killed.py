"""Fifty kills with SIGKILL, among them some inside a save; the script that makes them says how."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

SCRIPT = Path(__file__).with_name("kill_runs.py")


def test_runs_killed_fifty_times_end_as_the_one_left_alone(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    # Saved every 6 steps and logged every 4, so that entries of the log span the interruptions.
    often = {"num_train_epochs": 2, "eval_strategy": "steps", "eval_steps": 6, "logging_steps": 4}
    recipe = {**recipe_values, "training": {**recipe_values["training"], **often}}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    done = subprocess.run(
        [sys.executable, SCRIPT, file, "--folder", tmp_path / "runs", "--kills", "50"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    print({key: value for key, value in report.items() if key != "compared"})
    assert report["kills"] == 50
    assert report["kills inside a save"] >= 5
    assert len(report["resumed from step"]) >= 3
    assert len(report["compared"]) == report["runs"] >= 13  # at most four kills a run
    for run in report["compared"]:
        assert run == {"run": run["run"], "log_is_equal": True, "adapter_is_equal": True, "scores_are_equal": True}
