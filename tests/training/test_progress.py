import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from melora.training.progress import MetricsFile, ProgressDisplay, clock


@pytest.fixture
def args(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=4, use_cpu=True)


def events(display: ProgressDisplay, args: TrainingArguments) -> None:
    state, control = TrainerState(max_steps=10, epoch=0.0), TrainerControl()
    display.on_train_begin(args, state, control)
    state.global_step, state.epoch = 5, 0.5
    display.on_step_end(args, state, control)
    display.on_log(args, state, control, logs={"loss": 0.25})
    display.on_log(args, state, control, logs={"eval_loss": 0.5, "eval_pearson": 0.75})
    display.close()


def test_plain_lines_without_a_terminal(args: TrainingArguments) -> None:
    out = io.StringIO()
    events(ProgressDisplay(Console(file=out, soft_wrap=True), ["pearson"]), args)
    first, second = out.getvalue().splitlines()
    assert first.startswith("step 5/10  epoch 0.50  loss 0.2500  ")
    assert first.endswith(" left")
    assert "rows/s" in first
    assert second == "epoch 0.50  validation loss 0.5000  pearson 0.7500"


def test_a_bar_on_a_terminal(args: TrainingArguments) -> None:
    out = io.StringIO()
    events(ProgressDisplay(Console(file=out, force_terminal=True, width=120, highlight=False), ["pearson"]), args)
    assert "5/10" in out.getvalue()
    assert "loss 0.2500" in out.getvalue()
    assert "pearson 0.7500" in out.getvalue()


def test_metrics_are_valid_json_whatever_the_gradient(args: TrainingArguments, tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for loss, norm in ((0.5, 1.0), (0.25, math.inf)):
        logs: dict[str, Any] = {"loss": loss, "grad_norm": norm}
        file.on_log(args, TrainerState(global_step=3), TrainerControl(), logs=logs)
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (first["step"], first["grad_norm"], second["grad_norm"]) == (3, 1.0, None)


@pytest.mark.parametrize(("seconds", "shown"), [(0.2, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (7322, "2:02:02")])
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown
