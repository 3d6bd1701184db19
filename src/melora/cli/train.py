"""melora train"""

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import TrainingArguments

from ..allocation import Allocation
from ..config import AUTO
from ..errors import MeloraError
from ..training.allocating import what_is_chosen
from ..training.arguments import training_arguments
from ..training.folder import ADAPTER, CURVES, RunFolder
from ..training.keys import recipe_keys
from ..training.memory import disk_needed, estimate_memory, free_disk, free_memory
from ..training.plan import ModulePlan, count_parameters, count_steps, plan_modules
from ..training.prepare import Prepared, prepare
from ..training.progress import clock
from ..training.push import check_hub, push
from ..training.ranks import in_turns, is_main, join, together
from ..training.recipe import Recipe, load_recipe
from ..training.run import RunResult, train

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace, console: Console) -> int:
    if args.keys:
        console.print(recipe_keys(), markup=False)
        return 0
    if args.recipe is None:
        raise MeloraError("no recipe given; e.g. `melora train recipes/quickstart.yaml`")
    recipe = load_recipe(args.recipe, args.overrides)
    join(use_cpu=bool(recipe.training.get("use_cpu")))
    if args.private and args.push_to_hub is None:
        raise MeloraError("--private: is for --push-to-hub; name the repository with it")
    if args.push_to_hub is not None:
        with together():
            check_hub(args.push_to_hub)
    if args.dry_run:
        RunFolder(recipe, overwrite=args.overwrite, resume=args.resume)
        prepared = in_turns(lambda: prepare(recipe, on_meta=True))
        with tempfile.TemporaryDirectory() as nowhere:
            _show_plan(prepared, training_arguments(recipe, prepared.task, Path(nowhere)), console)
        return 0
    result = train(
        recipe,
        overwrite=args.overwrite,
        resume=args.resume,
        console=console,
        on_ready=lambda prepared, arguments: _show_ready(prepared, arguments, console),
    )
    _show_result(result, console)
    if args.push_to_hub is not None and is_main():
        console.print(f"uploaded to {push(result.path, args.push_to_hub, private=args.private)}", markup=False)
    return 0


def _show_ready(prepared: Prepared, args: TrainingArguments, console: Console) -> None:
    if prepared.allocation is not None:
        _show_allocation(prepared.allocation, console)
    _show_start(prepared, args, console)


def _show_allocation(allocation: Allocation, console: Console) -> None:
    """What was chosen by the gradient, module by module."""
    table = Table("module", "shape (out x in)", "effective rank of gradient", "n", "r", "parameters", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for module in allocation.modules:
        shown = (f"{module.effective_rank:.1f}", str(module.n), str(module.r), f"{module.parameters:,}")
        table.add_row(module.name, f"{module.d_out} x {module.d_in}", *shown)
    console.print(table)


def _show_start(prepared: Prepared, args: TrainingArguments, console: Console) -> None:
    counts = count_parameters(prepared.model)
    lora = f" (LoRA of equal rank: {counts.lora:,})" if counts.lora not in (None, counts.adapter) else ""
    console.print(f"model    {prepared.source.name}, {counts.base:,} frozen parameters", markup=False)
    console.print(f"adapter  {counts.adapter:,} parameters{lora}; head {counts.head:,}", markup=False)
    console.print(
        f"data     {len(prepared.train):,} rows to train on, {len(prepared.validation):,} to validate; "
        f"{count_steps(args, len(prepared.train)):,} steps"
    )


def _show_plan(prepared: Prepared, args: TrainingArguments, console: Console) -> None:
    table = Table("module", "shape (out x in)", "n", "r", "equivalent rank", "parameters", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for module in plan_modules(prepared.model):
        table.add_row(module.name, f"{module.d_out} x {module.d_in}", *_planned(prepared.recipe, module))
    if table.row_count:  # else the head alone is trained
        console.print(table)
    _show_start(prepared, args, console)
    _show_search(prepared.recipe, console)
    for line in prepared.task.preview(prepared.train, prepared.tokenizer):
        console.print(line, markup=False)
    _show_needs(prepared, args, console)
    console.print("dry run: nothing was written")


def _planned(recipe: Recipe, module: ModulePlan) -> list[str]:
    """n, r, equivalent rank and parameters of a module, as far as they are known before the run."""
    unknown = {"n"} if recipe.adapter.get("n") == AUTO else set()
    if recipe.searches_adapter and recipe.adapter_search.budget is not None:
        unknown |= {"r", "parameters"}
    if unknown and recipe.adapter.get("mixing") == "learned":  # whose core has r n^2
        unknown.add("parameters")
    shown: list[str] = []
    for key in ("n", "r", "equivalent_rank", "parameters"):
        value = getattr(module, key)
        if key in unknown or (key == "equivalent_rank" and unknown):
            shown.append(AUTO)
        else:
            shown.append("-" if value is None else f"{value:,}" if key == "parameters" else str(value))
    return shown


def _show_search(recipe: Recipe, console: Console) -> None:
    if not recipe.searches_adapter:
        return
    search = recipe.adapter_search
    limit = "" if search.budget is None else f", for at most {search.budget:,} parameters in place of those above"
    console.print(
        f"auto     {what_is_chosen(recipe)} of each module, chosen at the start of training by the gradient of "
        f"{search.batches} batches{limit}",
        markup=False,
    )


def _show_needs(prepared: Prepared, args: TrainingArguments, console: Console) -> None:
    """Memory and disk, with a warning where there is less than the run will take."""
    estimate = estimate_memory(prepared, args)
    total, free = estimate.pop("total"), free_memory(args)
    parts = ", ".join(f"{name} {_size(value)}" for name, value in estimate.items())
    console.print(f"memory   about {_size(total)}, {_size(free)} free: {parts}")
    if total > free:
        logger.warning(
            "the run takes about %s of memory and %s are free; lower training.per_device_train_batch_size, "
            "training.per_device_eval_batch_size or data.max_length, or set training.activation_checkpointing=true",
            _size(total),
            _size(free),
        )
    needed, room = disk_needed(prepared, args), free_disk(prepared.recipe.output)
    console.print(f"disk     about {_size(needed)} at {prepared.recipe.output}, {_size(room)} free", markup=False)
    if needed > room:
        logger.warning("the run folder takes about %s and %s are free on its disk", _size(needed), _size(room))


def _show_result(result: RunResult, console: Console) -> None:
    results = result.results
    scores = "  ".join(f"{name} {value:.4f}" for name, value in results["metrics"].items())
    console.print(f"kept epoch {results['best_epoch']:g} after {clock(results['train_seconds'])} of training: {scores}")
    show_answers(results, console)
    console.print(f"run      {result.path}", markup=False)
    console.print(f"adapter  {result.path / ADAPTER}   curves {result.path / CURVES}", markup=False)


def show_answers(results: dict[str, Any], console: Console) -> None:
    """The line on generated answers, where there are any."""
    found = results.get("answers")
    if found is not None:
        console.print(
            f"answers  exact match {found['exact_match']:.4f}: {found['correct']} of {found['rows']} rows, "
            f"{found['unfinished']} unfinished after {found['answer_tokens']} tokens"
        )


def _size(count: int) -> str:
    """Bytes in MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
