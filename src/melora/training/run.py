"""One training run, from a recipe to a finished run folder."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainingArguments

from .adalora import check_run
from .allocating import allocation_file, allocation_for
from .allocation_plot import plot_allocation
from .arguments import training_arguments
from .card import model_card
from .curves import plot_curves
from .device import prepare_checkpointing
from .environment import describe_environment
from .failures import Stopped, TrainingError
from .folder import (
    ADAPTER,
    ALLOCATION,
    ALLOCATION_PLOT,
    CHECKPOINTS,
    CURVES,
    ENVIRONMENT,
    METRICS,
    RESULTS,
    RunFolder,
    write_json,
    write_text,
)
from .losses import LossTrend, lower_rate
from .measured import StepClock, forget_peak, peak_memory
from .plan import count_parameters, count_steps, plan_modules
from .prepare import Prepared, adapt, load
from .progress import MetricsFile, ProgressDisplay
from .ranks import gather, in_turns, is_main, join, main_only, together
from .recipe import Recipe
from .saved import save_adapter
from .schema import one_line
from .sharded import whole_state
from .signals import StopRequest
from .trainer import AdapterTrainer, build_trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, and what results.json holds."""

    path: Path
    results: dict[str, Any]


def train(
    recipe: Recipe,
    *,
    overwrite: bool = False,
    resume: bool = False,
    console: Console | None = None,
    on_ready: Callable[[Prepared, TrainingArguments], None] | None = None,
) -> RunResult:
    """Train an adapter and write the run folder `recipe.output`.

    Under `accelerate launch` every process calls this; the main one writes and speaks, and all succeed or fail.

    Args:
        recipe: what to train.
        overwrite: replace an existing run.
        resume: go on with an interrupted run of the same recipe, from its newest checkpoint that is as it was written.
        console: where progress goes; nowhere if None.
        on_ready: called with what is about to run, before the first step.

    Raises:
        MeloraError: bad input; nothing was written.
        TrainingError: the loss or the gradient became NaN or infinite, a part of the adapter did not move, or a
            checkpoint could not be written. The partial folder stays if there is a checkpoint in it, and the message
            names that.
        Stopped: SIGTERM came (in the main thread): a checkpoint was written, --resume goes on from it.
    """
    join(use_cpu=bool(recipe.training.get("use_cpu")))
    with together():
        folder = RunFolder(recipe, overwrite=overwrite, resume=resume)
    loaded = in_turns(lambda: load(recipe))
    allocation = allocation_for(loaded, folder)
    prepared = in_turns(lambda: adapt(loaded, allocation))
    with together():
        args = training_arguments(recipe, prepared.task, folder.partial / CHECKPOINTS)
        check_run(prepared.model, count_steps(args, len(prepared.train)))
        if on_ready is not None:
            on_ready(prepared, args)
    main_only(folder.create)
    with together():
        folder.check_shared()
    try:
        results = _train_in(folder, prepared, args, console)
    except KeyboardInterrupt:
        checkpoint = folder.abandon() if is_main() else None
        if checkpoint is not None:
            logger.warning("interrupted; go on from %s with --resume", checkpoint)
        raise
    except Stopped as stopped:
        folder.release()
        logger.warning(
            "stopped by SIGTERM after step %d, which is saved; the same command with --resume goes on from there",
            stopped.step,
        )
        gather(None)  # the launcher ends all ranks once one has ended
        raise
    except Exception as error:
        checkpoint = folder.abandon() if is_main() else None
        if isinstance(error, TrainingError) and checkpoint is not None:
            raise TrainingError(f"{one_line(error)}; the last good checkpoint is {checkpoint}") from error
        raise
    main_only(folder.finish)
    return RunResult(folder.final, results)


def _train_in(
    folder: RunFolder, prepared: Prepared, args: TrainingArguments, console: Console | None
) -> dict[str, Any]:
    here, task, model = folder.partial, prepared.task, prepared.model
    environment = {
        **describe_environment(),
        "processes": args.world_size,
        "base_model": {"name": prepared.source.name, "kind": prepared.source.kind, "fingerprint": prepared.fingerprint},
    }
    main_only(lambda: write_json(here / ENVIRONMENT, environment))
    main_only(lambda: _write_allocation(here, prepared))
    modules, counts = plan_modules(model), count_parameters(model)
    prepare_checkpointing(model, args.activation_checkpointing_kwargs)

    display = ProgressDisplay(console, [task.shown]) if console is not None and is_main() else None
    callbacks = [MetricsFile(here / METRICS)] if is_main() else []
    clock = StepClock()
    forget_peak(args.device)
    trainer = build_trainer(
        task,
        prepared.tokenizer,
        model=model,
        args=args,
        train_dataset=prepared.train,
        eval_dataset=prepared.validation,
        callbacks=[clock, *callbacks, *([display] if display is not None else [])],
    )
    trainer.idle_modules = tuple(prepared.recipe.idle_modules)
    trainer.take_rates(prepared.recipe)
    trainer.take_schedule(count_steps(args, len(prepared.train)))
    try:
        with StopRequest() as trainer.stop:
            output = trainer.train(resume_from_checkpoint=str(folder.checkpoint) if folder.checkpoint else None)
    finally:
        if display is not None:
            display.close()
    peak = max(gather(peak_memory(args.device)))
    history = list(trainer.state.log_history)
    metrics = _final_metrics(trainer, args)
    scores = task.final_scores(
        trainer.model, prepared.tokenizer, prepared.held_out, prepared.recipe.data, args.eval_batch_size
    )
    results = {
        "task": task.name,
        "primary": task.primary,
        "metrics": {name: metrics[f"eval_{name}"] for name in task.metric_names},
        "validation_loss": metrics["eval_loss"],
        **scores,
        "best_epoch": _best_epoch(trainer),
        "epochs": float(trainer.state.epoch or 0.0),
        "steps": trainer.state.global_step,
        "learning_rate": args.learning_rate,
        "loraplus_lr_ratio": prepared.recipe.loraplus_lr_ratio,
        "head_learning_rate": args.learning_rate * prepared.recipe.head_learning_rate_ratio,
        "batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "rows": prepared.rows,
        "cut_rows": prepared.cut,
        "dropped_rows": prepared.dropped,
        "parameters": counts.to_dict(),
        "new_modules": prepared.new_modules,
        "train_loss": _course(trainer.losses, args.learning_rate),
        "train_seconds": round(output.metrics["train_runtime"], 3),
        "step_seconds": clock.median(),
        "peak_memory": peak,
        "resumed": folder.checkpoint is not None,
    }
    state = whole_state(model)

    def write() -> None:
        save_adapter(model, here / ADAPTER, prepared.tokenizer, task, prepared.recipe, prepared.source, state)
        card = model_card(prepared.recipe, prepared.source, task, counts, modules, results, environment)
        write_text(here / ADAPTER / "README.md", card)
        method = prepared.recipe.adapter.get("method", "melora")
        title = f"{method} on {prepared.source.name}: {counts.adapter:,} adapter parameters"
        plot_curves(history, task, title, results["best_epoch"], here / CURVES)
        write_json(here / RESULTS, results)

    main_only(write)
    return results


def _write_allocation(here: Path, prepared: Prepared) -> None:
    """Before the first step, so that a run which goes on has the same."""
    chosen = prepared.allocation
    if chosen is not None and not (here / ALLOCATION).is_file():
        write_json(here / ALLOCATION, allocation_file(prepared, chosen))
        title = f"{prepared.source.name}: gradient of {chosen.batches} batches"
        plot_allocation(chosen, title, here / ALLOCATION_PLOT)


def _course(losses: LossTrend, rate: float) -> dict[str, Any]:
    """The training loss at both ends; a warning if it ended clearly above its start."""
    diverged = losses.ended_above()
    if diverged:
        logger.warning(
            "the training loss rose from %.3g (first steps) to %.3g (last steps): %s",
            losses.start,
            losses.end,
            lower_rate(rate),
        )
    return {"start": losses.start, "end": losses.end, "diverged": diverged}


def _final_metrics(trainer: AdapterTrainer, args: TrainingArguments) -> dict[str, float]:
    """Score the adapter that is about to be saved.

    Raises:
        TrainingError: it is not the best checkpoint, though that was to be loaded.
    """
    metrics: dict[str, float] = trainer.evaluate()
    best = trainer.state.best_metric
    score = metrics[f"eval_{args.metric_for_best_model.removeprefix('eval_')}"]
    if args.load_best_model_at_end and best is not None and abs(score - best) > 1e-3 * max(1.0, abs(best)):
        raise TrainingError(
            f"the best checkpoint scored {best:.6f}, but after loading it the model scores {score:.6f}; its "
            "adapter was not loaded as it was saved"
        )
    return metrics


def _best_epoch(trainer: AdapterTrainer) -> float:
    """The epoch whose adapter is in the model now."""
    if trainer.args.load_best_model_at_end and trainer.state.best_global_step:
        steps = [event for event in trainer.state.log_history if event["step"] == trainer.state.best_global_step]
        return float(steps[0]["epoch"])
    return float(trainer.state.epoch or 0.0)
