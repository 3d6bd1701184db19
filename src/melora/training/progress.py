"""What a user sees while a model trains, and metrics.jsonl."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class MetricsFile(TrainerCallback):
    """Appends every log event to a JSON-lines file: step, epoch, seconds since the start, and the event's values."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        event = {"step": state.global_step, "seconds": round(time.monotonic() - self.start, 3), **(logs or {})}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(event)) + "\n")


def finite(event: Mapping[str, Any]) -> dict[str, Any]:
    """The event as JSON can hold it: a gradient norm of fp16 training may be infinite, for which it has no number."""
    return {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in event.items()}


class ProgressDisplay(TrainerCallback):
    """Loss, speed and time left: a bar on a terminal, one plain line per log event anywhere else.

    Args:
        console: where to print.
        metrics: names of the scores to show after an evaluation.
    """

    def __init__(self, console: Console, metrics: list[str]) -> None:
        self.console = console
        self.metrics = metrics
        self.bar: Progress | None = None
        self.closed = False
        self.rows = 0.0  # rows a step
        self.start = self.window = time.monotonic()
        self.first_step = self.window_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.start = self.window = time.monotonic()
        self.first_step = self.window_step = state.global_step
        if self.console.is_terminal:
            columns = ("loss {task.fields[loss]}", "{task.fields[speed]}")
            self.bar = Progress(
                TextColumn("epoch {task.fields[epoch]:.2f}"),
                BarColumn(),
                MofNCompleteColumn(),
                *(TextColumn(text) for text in columns),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self.console,
                transient=True,
            )
            self.bar.add_task(
                "train", total=state.max_steps, completed=state.global_step, epoch=0.0, loss="-", speed=""
            )
            self.bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=state.global_step, epoch=state.epoch or 0.0)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = {} if self.closed else logs or {}
        if "loss" in logs:
            self._show_loss(state, logs)
        elif "eval_loss" in logs:
            scores = "  ".join(f"{name} {logs[f'eval_{name}']:.4f}" for name in self.metrics if f"eval_{name}" in logs)
            self.console.print(f"epoch {state.epoch or 0:.2f}  validation loss {logs['eval_loss']:.4f}  {scores}")
            self.window, self.window_step = time.monotonic(), state.global_step

    def _show_loss(self, state: TrainerState, logs: dict[str, Any]) -> None:
        now = time.monotonic()
        done = state.global_step - self.window_step
        speed = f"{done * self.rows / max(now - self.window, 1e-9):.0f} rows/s" if done else ""
        self.window, self.window_step = now, state.global_step
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], loss=f"{logs['loss']:.4f}", speed=speed)
            return
        left = (now - self.start) / max(state.global_step - self.first_step, 1) * (state.max_steps - state.global_step)
        self.console.print(
            f"step {state.global_step}/{state.max_steps}  epoch {state.epoch or 0:.2f}  loss {logs['loss']:.4f}  "
            f"{speed}  {clock(left)} left"
        )

    def close(self) -> None:
        """Take the bar off the terminal, also after a failure, and show no more: training is over."""
        self.closed = True
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
