"""How long a run will take, found by taking a step of it."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.benchmark import timer

from ..errors import MeloraError
from .allocating import with_some_n
from .arguments import training_arguments
from .device import prepare_checkpointing
from .measured import StepClock
from .plan import batches_of_evaluation, count_steps
from .prepare import prepare
from .recipe import Recipe
from .trainer import AdapterTrainer, build_trainer

# A trial scores, saves and reports nothing.
_QUIET = {
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "logging_strategy": "no",
    "load_best_model_at_end": False,
    "report_to": "none",
}


@dataclass(frozen=True)
class StepTime:
    """What one step of a run costs, and how many it has.

    Attributes:
        step_seconds: of an optimiser step, on rows of the median length.
        evaluation_seconds: of a batch of an evaluation, likewise.
        steps: optimiser steps of the whole run.
        evaluation_batches: batches of one evaluation.
    """

    step_seconds: float
    evaluation_seconds: float
    steps: int
    evaluation_batches: int


def time_step(recipe: Recipe, steps: int = 1) -> StepTime:
    """Take a few steps of a run on the machine that it would run on. Nothing is written or kept.

    The model is loaded and trained as in the run, on one batch of rows of the median length. Torch's random state is
    set by the recipe's seed, as the run sets it.

    Args:
        recipe: the run's.
        steps: how many to time, after one that warms up; the median counts.

    Raises:
        MeloraError: bad input, as in the run.
        TrainingError: the loss or its gradient is not finite.
    """
    if steps < 1:
        raise MeloraError(f"steps: must be 1 or more, got {steps}")
    prepared = prepare(with_some_n(recipe))
    trial = replace(recipe, training={**recipe.training, **_QUIET, "max_steps": 1 + steps})
    clock = StepClock()
    # TrainingArguments and the Trainer want a folder, and the Trainer makes it.
    with tempfile.TemporaryDirectory() as nowhere:
        whole = training_arguments(recipe, prepared.task, Path(nowhere))
        args = training_arguments(trial, prepared.task, Path(nowhere))
        prepare_checkpointing(prepared.model, args.activation_checkpointing_kwargs)
        trainer = build_trainer(
            prepared.task,
            prepared.tokenizer,
            model=prepared.model,
            args=args,
            # The rows of one optimiser step: an epoch of the trial is a step.
            train_dataset=_typical(prepared.train, args.train_batch_size * args.gradient_accumulation_steps),
            eval_dataset=_typical(prepared.validation, args.eval_batch_size),
            callbacks=[clock],
        )
        trainer.must_move = False
        trainer.take_rates(recipe)
        trainer.train()
        clock.seconds.pop(0)
        return StepTime(
            step_seconds=clock.median() or 0.0,
            evaluation_seconds=_evaluation_seconds(trainer),
            steps=count_steps(whole, len(prepared.train)),
            evaluation_batches=batches_of_evaluation(whole, len(prepared.validation)),
        )


def _typical(examples: Sequence[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """So many rows from the middle of all when ordered by length; all where there are not more."""
    ordered = sorted(examples, key=lambda example: len(example["input_ids"]))
    start = max(0, (len(ordered) - rows) // 2)
    return ordered[start : start + rows]


def _evaluation_seconds(trainer: AdapterTrainer) -> float:
    model = trainer.model.eval()
    batch = next(iter(trainer.get_eval_dataloader()))
    trainer.prediction_step(model, dict(batch), False)
    start = timer()  # waits for the accelerator first, where there is one
    trainer.prediction_step(model, dict(batch), False)
    return timer() - start
