"""Building a trainer for a task."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, PrinterCallback, Trainer

from .adalora import Allocating
from .fast_dropout import fast_dropout
from .guarded import Guarded
from .optimizer import PartRates
from .tasks import Task
from .tracked import Tracked


class AdapterTrainer(Tracked, Allocating, PartRates, Guarded, Trainer):
    """The trainer of tasks that transformers' Trainer serves as it is, and in front of other trainers a mixin."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the Trainer's. The backward pass is within, since activation checkpointing drops once more there."""
        own = self.args.device.type == "cpu" and not self.args.torch_compile  # a compiled model draws in its kernels
        with fast_dropout() if own else nullcontext():
            loss: torch.Tensor = super().training_step(*args, **kwargs)
        return loss


def build_trainer(task: Task, tokenizer: Any, **kwargs: Any) -> AdapterTrainer:
    """The task's trainer with its collator and metrics; kwargs as for Trainer. Without train_dataset it only scores."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        return task.metrics(np.asarray(prediction.predictions), np.asarray(prediction.label_ids))

    trainer = task.trainer_class(training="train_dataset" in kwargs)(
        data_collator=task.collator(tokenizer),
        processing_class=tokenizer,
        compute_metrics=compute,
        # Some models return hidden states after the logits; only the logits are wanted, and kept.
        preprocess_logits_for_metrics=lambda logits, labels: logits[0] if isinstance(logits, tuple) else logits,
        **kwargs,
    )
    if task.peft_type == "SEQ_CLS":
        # The Trainer takes a model that accepts **kwargs for one that divides its loss by the rows of the whole step.
        # Sequence classifiers take them and do not: the loss and gradients would be too large by the number of ranks
        # and of accumulated batches (transformers 5.23).
        trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)  # it prints every log event as a dict when tqdm is off
    return trainer
