"""SIGTERM to the real command, as Slurm sends it before it kills."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml


def test_sigterm_saves_and_the_same_command_with_resume_goes_on(
    recipe_values: dict[str, Any], trained_run: Path, tmp_path: Path, melora: Any
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_values))
    command = [sys.executable, "-m", "melora", "train", str(recipe)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    log = tmp_path / "run.partial" / "metrics.jsonl"
    until = time.monotonic() + 120
    while process.poll() is None and not log.exists() and time.monotonic() < until:
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    # bitsandbytes has a line of its own on CPUs that it has kernels for (0.50: "Failed to load CPU gemm_4bit_forward").
    (line,) = [line for line in errors.splitlines() if not line.startswith("Failed to load CPU gemm_4bit_forward")]
    assert line.startswith("warning: stopped by SIGTERM after step ")
    assert line.endswith(", which is saved; the same command with --resume goes on from there")
    step = int(line.split("after step ")[1].split(",")[0])
    assert (tmp_path / "run.partial" / "checkpoints" / f"checkpoint-{step}" / "manifest.json").is_file()

    done = melora("train", recipe, "--resume")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "run" / "results.json").read_text())["resumed"]
    adapters = [path / "adapter" / "adapter_model.safetensors" for path in (tmp_path / "run", trained_run)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
