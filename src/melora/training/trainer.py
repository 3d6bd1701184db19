"""Building a trainer for a task, and telling whether its adapter moved."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from transformers import EvalPrediction, PrinterCallback, Trainer

from .guarded import Guarded
from .tasks import Task


class AdapterTrainer(Guarded, Trainer):
    """The trainer of tasks that transformers' Trainer serves as it is, and in front of other trainers a mixin."""


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


def snapshot(parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of the adapter's parameters before training, for `unmoved_modules`."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in parameters.items()}


def unmoved_modules(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> list[str]:
    """The modules of which no adapter parameter changed: no gradient reached them, or every step was too small.

    Args:
        before: what `snapshot` returned.
        after: the same parameters now.
    """
    moved: dict[str, bool] = {}
    for name, old in before.items():
        module = module_of(name)
        moved[module] = moved.get(module, False) or not torch.equal(old, after[name].detach().cpu())
    return [module for module, changed in moved.items() if not changed]


def module_of(parameter: str) -> str:
    """The adapted module that an adapter's parameter belongs to, under the base model's own name.

    PEFT's layers keep their parameters in children whose names start with the method's prefix (lora_A, melora_B, ...).
    """
    parts = parameter.removeprefix("base_model.model.").split(".")
    prefixes = tuple(PEFT_TYPE_TO_PREFIX_MAPPING.values())
    inner = next((index for index, part in enumerate(parts) if part.startswith(prefixes)), len(parts) - 1)
    return ".".join(parts[:inner])
