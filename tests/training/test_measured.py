import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from melora.training.measured import StepClock, peak_memory, resident_peak


def test_a_clock_without_steps_has_no_median() -> None:
    assert StepClock().median() is None


def test_the_clock_takes_each_step_from_its_begin_to_its_end(tmp_path: Path) -> None:
    moment: Any = (TrainingArguments(str(tmp_path), use_cpu=True), TrainerState(), TrainerControl())
    clock = StepClock()
    for _ in range(3):
        clock.on_step_begin(*moment)
        clock.on_step_end(*moment)
    assert len(clock.seconds) == 3
    assert min(clock.seconds) <= (clock.median() or 0.0) <= max(clock.seconds)


def test_the_resident_peak_is_what_linux_says_of_this_process_alone(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t  999 kB\nVmHWM:\t  123 kB\nVmRSS:\t  7 kB\n")
    assert resident_peak(status) == 123 * 1024


def test_elsewhere_the_resident_peak_is_getrusage_s(tmp_path: Path) -> None:
    found = resident_peak(tmp_path / "none")
    unit = 1 if sys.platform == "darwin" else 1024
    assert 0 < found <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def test_on_a_cpu_the_peak_is_the_process_s() -> None:
    held = torch.ones(8 * 2**20)
    assert peak_memory(torch.device("cpu")) > held.numel() * held.element_size()


def test_a_run_tells_both(trained_run: Path) -> None:
    results = json.loads((trained_run / "results.json").read_text())
    assert 0 < results["step_seconds"] < results["train_seconds"]
    assert 10_000_000 < results["peak_memory"] < 10**12
