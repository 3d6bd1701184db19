"""What every trainer of melora does beyond its library's own: failures that would be silent are made loud."""

import logging
import math
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .adapter import adapter_and_head
from .batches import Batch, describe
from .failures import TrainingError as TrainingError
from .losses import lower_rate
from .moved import check_moved, snapshot
from .ranks import any_rank, gather, is_main, main_only, shared
from .resumable import Resumable
from .sharded import whole

logger = logging.getLogger(__name__)

STEPS_UNTIL_MOVED = 5
# The scaler of fp16 starts at 65536 and halves at each overflow: after 20 in a row the scale itself is not the reason.
MOST_OVERFLOWS = 20


class Guarded(Resumable):
    """A mixin in front of transformers' Trainer or a subclass of it, such as TRL's SFTTrainer.

    Stops before the optimiser's step, on all ranks if one has reason to, when the loss of a batch or the gradient is
    not finite; after the first steps, if a part of the adapter did not move; and after an evaluation whose loss is not
    finite. One check a step: the batches of an accumulated gradient are looked at together. (DeepSpeed takes the step
    within its backward pass, so there the check comes right after it.)

    Attributes:
        idle_modules: regular expressions of adapted modules that may stay unmoved.
        must_move: whether to look for parts that did not move; a trial of a step or two has nothing to show.
    """

    idle_modules: tuple[str, ...] = ()
    must_move: bool = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._batches: list[Batch] = []
        self._overflows = 0
        self._before: dict[str, torch.Tensor] = {}
        self._is_moved_checked = self._is_rise_told = False
        self.add_callback(_Checks(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; the adapter must be as it was made, also if a checkpoint is to be loaded into it.

        Raises:
            TrainingError: see the class.
        """
        # Only the main rank is sure to have weights yet.
        self._before = snapshot(self._watched()) if is_main() and self.must_move else {}
        self._is_moved_checked = not self.must_move
        output = super().train(*args, **kwargs)
        if not self._is_moved_checked:
            self._check_moved()
        return output

    # Every step

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        inputs = kwargs.get("inputs", args[1] if len(args) > 1 else {})
        kept = dict(inputs)  # the Trainer may take labels out
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self._batches.append(Batch.of(kept, loss))
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, which calls it once a step, right before the optimiser's."""
        norm = super()._get_grad_norm(*args, **kwargs)
        batches, self._batches = self._batches, []
        # Read back once a step: under 1% of a step of the smallest model here, and it saves a ruined run.
        losses = torch.stack([batch.loss for batch in batches]).tolist()
        self._check_losses(losses, batches)
        self._check_gradient(float(norm), batches)
        self.losses.add(sum(losses))
        return norm

    def _check_losses(self, losses: list[float], batches: list[Batch]) -> None:
        bad = [index for index, loss in enumerate(losses) if not math.isfinite(loss)]
        if any_rank(bool(bad)):
            self._fail(f"the loss is {losses[bad[0]]}" if bad else None, [batches[index] for index in bad[:1]])

    def _check_gradient(self, norm: float, batches: list[Batch]) -> None:
        finite = math.isfinite(norm)
        scaler = getattr(self.accelerator, "scaler", None)
        self._overflows = 0 if finite else self._overflows + 1
        tolerated = MOST_OVERFLOWS if scaler is not None and scaler.is_enabled() else 1
        if any_rank(self._overflows >= tolerated):
            often = f", the {self._overflows}th time in a row whatever fp16's loss scale" if tolerated > 1 else ""
            self._fail(f"the gradient's norm is {norm}{often}", batches)

    def _fail(self, what: str | None, batches: list[Batch]) -> None:
        """Raise, on all ranks alike, what the ranks found that found something."""
        own = None
        if what is not None:
            own = f"{what} at step {self.state.global_step + 1}, {self._named(batches)}"
        found = "; ".join(dict.fromkeys(text for text in gather(own) if text is not None))
        rate, rise = self.args.learning_rate, self.losses.rise()
        if rise is None:
            advice = f"lower training.learning_rate ({rate:g} now) or adapter.lora_alpha, or use bf16 instead of fp16"
        else:
            advice = f"the loss had risen from {rise[0]:.3g} to {rise[1]:.3g} before: {lower_rate(rate)}"
        raise shared(TrainingError(f"{found}; stopped before the step: {gather(advice)[0]}"))

    def _named(self, batches: list[Batch]) -> str:
        return f"in {describe(batches, self.train_dataset, self.processing_class)}"

    # After a step

    def _took_step(self, optimizer: Any) -> None:
        if not self.accelerator.optimizer_step_was_skipped:
            self.moving_steps += any(group["lr"] > 0 for group in optimizer.param_groups)

    def _after_step(self, state: TrainerState, control: TrainerControl) -> None:
        super()._after_step(state, control)
        if not self._is_moved_checked and self.moving_steps >= STEPS_UNTIL_MOVED:
            self._check_moved()
        if not self._is_rise_told and self.losses.is_far_above():
            self._is_rise_told = True
            logger.warning(
                "step %d: the loss of the latest steps is %.3g, that of the first was %.3g; %s",
                state.global_step,
                self.losses.end,
                self.losses.start,
                lower_rate(self.args.learning_rate),
            )

    def _watched(self) -> dict[str, torch.Tensor]:
        """What must move: the adapter, or the head where that is all that is trained."""
        adapter, head = adapter_and_head(self.model)
        return adapter or head

    def _check_moved(self) -> None:
        after: dict[str, torch.Tensor] = {}
        for name, parameter in self._watched().items():  # one at a time: together they may be as large as the model
            after |= snapshot(whole({name: parameter}))
        main_only(
            lambda: check_moved(
                self._before,
                after,
                steps=self.moving_steps,
                rate=self.args.learning_rate,
                idle_modules=self.idle_modules,
            )
        )
        self._is_moved_checked, self._before = True, {}


class _Checks(TrainerCallback):
    """The moments that the Trainer offers to callbacks alone."""

    def __init__(self, trainer: Guarded) -> None:
        self.trainer = trainer

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer._took_step(kwargs["optimizer"])

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        loss = metrics.get("eval_loss", 0.0)
        if not math.isfinite(loss):
            raise shared(
                TrainingError(
                    f"the validation loss is {loss} after step {state.global_step}: look for rows of the validation "
                    "data that overflow, lower training.learning_rate, or use bf16 instead of fp16"
                )
            )
