"""A trainer whose run can be killed at any moment and goes on as if nothing had happened."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .checkpoints import UNFINISHED, clear_unfinished, finish_checkpoint, rotate, size_of_newest, step_of
from .failures import Stopped, TrainingError
from .losses import LossTrend
from .manifest import read_manifest
from .ranked import Ranked
from .ranks import any_rank, is_shared, main_only, shared
from .schema import one_line
from .signals import StopRequest

PROGRESS = "progress.json"


class Resumable(Ranked):
    """A mixin in front of transformers' Trainer or a subclass of it, such as TRL's SFTTrainer.

    Beyond the Trainer's own resuming: checkpoints appear whole or not at all, with a manifest; the means in the log go
    on over an interruption; the best checkpoint is found again when the run folder was moved; a run that stops at
    max_steps within an epoch takes no further step when it goes on from there.

    Attributes:
        stop: a request to save and end, obeyed at the end of a step; None if there is no one to ask.
        losses: the training loss so far.
        moving_steps: how many optimiser steps had a learning rate above 0.
    """

    stop: StopRequest | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses = LossTrend()
        self.moving_steps = 0
        self._saving_to: str | None = None
        self._stopping = self._save_at_epoch_end = False
        self._resumed_from: Path | None = None
        self._seconds_before, self._began = 0.0, time.monotonic()
        self.add_callback(_AtSteps(self))

    # Saving

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = self._saving_to or super()._get_output_dir(trial)
        return folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As the Trainer's, but into a folder of its own first; all ranks write there, the main one gives the name.

        Raises:
            TrainingError: it can't be written; what was there before is still there.
            Stopped: it was written because of `stop`.
        """
        folder, step = Path(super()._get_output_dir(trial)), self.state.global_step
        progress = self._progress()
        main_only(lambda: clear_unfinished(folder))
        self._saving_to = str(folder / UNFINISHED)
        try:
            super()._save_checkpoint(model, trial)
            self._saving_to = None
            self._point_to_best(folder)
            main_only(lambda: self._finish(folder, step, progress))
        except (OSError, RuntimeError, SafetensorError) as error:
            if self.args.process_index == 0:
                clear_unfinished(folder)
            told = self._cannot_write(folder, error)
            raise (shared(told) if is_shared(error) else told) from error
        finally:
            self._saving_to = None
        if self._stopping:
            raise Stopped(step)

    def _point_to_best(self, folder: Path) -> None:
        """The Trainer looked for the best checkpoint in the temporary folder."""
        step, best = self.state.global_step, self.state.best_global_step
        if best and (best == step or (folder / f"checkpoint-{best}").is_dir()):
            self.state.best_model_checkpoint = str(folder / f"checkpoint-{best}")

    def _finish(self, folder: Path, step: int, progress: dict[str, Any]) -> None:
        new = folder / UNFINISHED / f"checkpoint-{step}"
        self.state.save_to_json(str(new / "trainer_state.json"))
        (new / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        final = finish_checkpoint(folder, step, None if best is None else step_of(best))
        rotate(folder, final, self.args.save_total_limit)

    def _progress(self) -> dict[str, Any]:
        """What the Trainer keeps in memory alone. Every rank must call this."""
        return {
            "loss_since_log": float(self.accelerator.gather(self._tr_loss).mean()),
            "loss_sum": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "seconds": self._seconds_before + time.monotonic() - self._began,
            "losses": self.losses.state(),
            "moving_steps": self.moving_steps,
            "own": self.own_progress(),
        }

    def own_progress(self) -> dict[str, Any]:
        """Plain values that a subclass's library keeps in memory alone, for `load_own_progress`."""
        return {}

    def load_own_progress(self, values: dict[str, Any]) -> None:
        """Go on from what `own_progress` gave when the checkpoint was written."""

    def _cannot_write(self, folder: Path, error: Exception) -> TrainingError:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        # Before the first checkpoint a guess: weights, two moments of the optimiser, and small files.
        trained = sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
        needed = size_of_newest(folder) or 3 * trained + 100_000
        return TrainingError(
            f"the checkpoint of step {self.state.global_step} can't be written to {folder}: {one_line(error)} "
            f"({free / 1e6:,.2f} MB are free there, a checkpoint takes about {needed / 1e6:,.2f} MB); make room and "
            "go on with --resume"
        )

    # Going on

    def _init_training_state(
        self, max_steps: int, per_epoch: int, epochs: int, resume_from_checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        trained: tuple[int, int] = super()._init_training_state(
            max_steps, per_epoch, epochs, resume_from_checkpoint, trial
        )
        self._resumed_from = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        if self._resumed_from is not None and self.args.load_best_model_at_end:
            best = read_manifest(self._resumed_from)["best_step"]
            if best is not None:
                self.state.best_model_checkpoint = str(self._resumed_from.with_name(f"checkpoint-{best}"))
        return trained

    def _begin(self) -> None:
        self._began = time.monotonic()
        if self._resumed_from is None:
            return
        progress = json.loads((self._resumed_from / PROGRESS).read_text(encoding="utf-8"))
        self._tr_loss = torch.tensor(progress["loss_since_log"], device=self.args.device)
        self._total_loss_scalar = progress["loss_sum"]
        self._globalstep_last_logged = progress["last_logged"]
        self._initial_global_step = 0  # the sums are those of the whole run
        self._seconds_before = progress["seconds"]
        self.losses.load(progress["losses"])
        self.moving_steps = progress["moving_steps"]
        self.load_own_progress(progress["own"])

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # the Trainer would take one step more before it looks
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        return super()._finalize_training(trial, num_train_samples, start_time - self._seconds_before)

    # Stopping

    def _after_step(self, state: TrainerState, control: TrainerControl) -> None:
        if self.stop is not None and not self._stopping:
            self._stopping = any_rank(self.stop.received)
        control.should_save = control.should_save or self._stopping
        # What still belongs to this step (an evaluation) comes at the epoch's end, and would be lost after a resume.
        last = control.should_training_stop or float(state.epoch or 0.0).is_integer()
        self._save_at_epoch_end = control.should_save and last
        control.should_save = control.should_save and not last


class _AtSteps(TrainerCallback):
    """Calls the trainer itself at the moments that the Trainer offers to callbacks alone; last of all callbacks."""

    def __init__(self, trainer: Resumable) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer._begin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer._after_step(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_save = control.should_save or self.trainer._save_at_epoch_end
        self.trainer._save_at_epoch_end = False
