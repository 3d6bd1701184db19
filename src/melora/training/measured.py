"""What a run costs, measured while it runs: seconds of an optimiser step, and the most memory."""

import resource
import sys
import time
from pathlib import Path
from statistics import median

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_STATUS = Path("/proc/self/status")


class StepClock(TrainerCallback):
    """Times every optimiser step: forward and backward passes of all its batches, and the update; no evaluation.

    On a GPU as well: the loss is read back in every step (guarded.py), so at most the update shows in the next step.

    Attributes:
        seconds: of each step so far.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._began = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.seconds.append(time.perf_counter() - self._began)

    def median(self) -> float | None:
        """Seconds; None before the first step."""
        return median(self.seconds) if self.seconds else None


def forget_peak(device: torch.device) -> None:
    """Begin to measure a GPU's peak; what a process held in its host's memory can't be forgotten."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took of a GPU since `forget_peak`, or that this process ever held of the host's.

    Args:
        device: what the run computes on.
    """
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_peak()


def resident_peak(status: Path = _STATUS) -> int:
    """Bytes of memory that this process has had at most.

    Linux says so in /proc; its getrusage would count in what the parent process held when it started this one.
    """
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
