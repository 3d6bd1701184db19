"""The recipe's training section: the task's TrainingArguments, with defaults that suit adapters."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ..errors import MeloraError
from .device import on_this_machine
from .recipe import Recipe
from .schema import convert, one_line, positive
from .tasks import Task
from .trackers import check_trackers

# Where the recipe has its own key for something, or where melora decides, a second way could only contradict it.
_ELSEWHERE = {
    "output_dir": "use the recipe's top-level key output",
    "seed": "use the recipe's top-level key seed",
    "data_seed": "use the recipe's top-level key seed",
    "resume_from_checkpoint": "use the option --resume",
    "do_train": "train and evaluate are commands of melora",
    "do_eval": "train and evaluate are commands of melora",
    "do_predict": "train and evaluate are commands of melora",
    "push_to_hub": "use the option --push-to-hub REPO",
    "remove_unused_columns": "melora passes only what the model takes",
    "label_names": "the task sets it",
    "disable_tqdm": "melora shows its own progress",
}
_POSITIVE = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size")
_SCORING = ("per_device_eval_batch_size", "use_cpu", "bf16", "fp16", "bf16_full_eval", "fp16_full_eval")
_FINITE = ("weight_decay", "max_grad_norm", "warmup_steps", "adam_epsilon")


def check_training(training: Mapping[str, Any], task: type[Task]) -> dict[str, Any]:
    """The section's typed values, without building TrainingArguments (which looks for devices).

    `warmup_ratio`, the name before transformers 5, is taken as warmup_steps below 1, which now means the same.

    Args:
        training: the section.
        task: says which class the fields are of, and which of them are its own affair.

    Raises:
        MeloraError: an unknown field, a wrong type, or a number that can't be meant.
    """
    values, cls = dict(training), task.arguments_class()
    if "warmup_ratio" in values:
        if "warmup_steps" in values:
            raise MeloraError("training.warmup_ratio: warmup_steps is set too; keep one of the two")
        ratio = convert(cls, {"warmup_steps": values.pop("warmup_ratio")}, "training")["warmup_steps"]
        if not 0 <= ratio < 1:
            raise MeloraError(f"training.warmup_ratio: must be from 0 to below 1, got {ratio}")
        values["warmup_steps"] = ratio
    for key, hint in {**_ELSEWHERE, **task.arguments_elsewhere()}.items():
        if key in values:
            raise MeloraError(f"training.{key}: {hint}; remove it from training")
    for key in ("eval_strategy", "save_strategy", "logging_strategy"):
        if values.get(key) is False:  # what YAML makes of a bare no
            values[key] = "no"
    typed = convert(cls, values, "training")
    check_trackers(typed.get("report_to"))
    for key in _POSITIVE:
        if key in typed:
            positive(f"training.{key}", typed[key], 1e6)
    for key in _FINITE:
        if key in typed and not (math.isfinite(typed[key]) and typed[key] >= 0):
            raise MeloraError(f"training.{key}: must be a finite number, 0 or more, got {typed[key]}")
    return typed


def training_arguments(recipe: Recipe, task: Task, folder: Path) -> TrainingArguments:
    """TrainingArguments for a run.

    Defaults that differ from transformers': score and save every epoch, keep the best epoch, log 50 times, no report to
    outside services.

    Args:
        recipe: the run's recipe.
        task: gives the metric that chooses the best epoch.
        folder: where checkpoints go.

    Raises:
        MeloraError: see check_training; also combinations that transformers refuses.
    """
    typed = on_this_machine(check_training(recipe.training, type(task)))
    strategy = typed.get("eval_strategy", "epoch")
    defaults: dict[str, Any] = {
        "eval_strategy": strategy,
        "save_strategy": strategy,
        "load_best_model_at_end": str(getattr(strategy, "value", strategy)) != "no",
        "metric_for_best_model": task.primary,
        "greater_is_better": task.greater_is_better,
        "save_total_limit": 2,  # the second is there to fall back to
        "logging_steps": 0.02,
        "logging_nan_inf_filter": False,  # transformers would log the last finite loss instead of a NaN
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "ddp_find_unused_parameters": False,  # a search through the graph in every step; a layer without gradient fails
        "dataloader_pin_memory": torch.cuda.is_available(),
        "report_to": "none",
    }
    if "eval_steps" in typed:
        defaults["save_steps"] = typed["eval_steps"]
    fixed = {
        "output_dir": str(folder),
        "seed": recipe.seed,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "label_names": ["labels"],
    }
    try:
        return task.arguments_class()(**{**defaults, **task.argument_defaults(), **typed, **fixed})
    except (ValueError, ImportError) as error:
        raise MeloraError(f"training: {one_line(error)}") from None


def scoring_arguments(recipe: Recipe, task: Task, folder: Path) -> TrainingArguments:
    """As training_arguments, for scoring alone: only what the recipe says of device, precision and batches counts."""
    kept = {key: value for key, value in recipe.training.items() if key in _SCORING}
    return training_arguments(replace(recipe, training={**kept, "eval_strategy": "no"}), task, folder)
