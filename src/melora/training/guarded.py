"""What every trainer of melora does beyond its library's own: failures that would be silent are made loud."""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object


class TrainingError(RuntimeError):
    """Training went wrong, though the input was in order; the message is one line."""


class Guarded(Trainer):
    """A mixin in front of transformers' Trainer or a subclass of it, such as TRL's SFTTrainer.

    Stops before the optimiser's step when the loss is not finite.
    """

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        # One value read back a step: under 1% of a step of the smallest model here, and it saves a ruined run.
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}; stopped before the step: lower "
                "training.learning_rate or adapter.lora_alpha, or use bf16 instead of fp16"
            )
        return loss
