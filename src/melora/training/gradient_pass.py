"""A pass over a few training batches before there is an adapter: on which rows, and how the model is set for it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .arguments import training_arguments

if TYPE_CHECKING:
    from .prepare import Loaded


@contextmanager
def gradient_pass(loaded: "Loaded") -> Iterator[list[dict[str, Any]]]:
    """The recipe's adapter_search.batches batches; inside, the base model is where and as the run will train it.

    That is the run's device, bf16 autocast and activation checkpointing. All is taken back at the end.
    """
    recipe, model = loaded.recipe, loaded.base.model
    with tempfile.TemporaryDirectory() as nowhere:  # which TrainingArguments wants, and leaves empty
        args = training_arguments(recipe, loaded.task, Path(nowhere))
    home = next(model.parameters()).device
    move = recipe.model.quantization is None  # bitsandbytes' layers lie where they were loaded
    autocast = torch.autocast(args.device.type, torch.bfloat16) if args.bf16 else nullcontext()
    if args.activation_checkpointing:
        model.activation_checkpointing_enable(args.activation_checkpointing_kwargs)
    try:
        if move:
            model.to(args.device)
        with autocast:
            yield _batches(loaded, recipe.adapter_search.batches, args.train_batch_size)
    finally:
        if move:
            model.to(home)
        if args.activation_checkpointing:
            model.activation_checkpointing_disable()


def _batches(loaded: "Loaded", count: int, size: int) -> list[dict[str, Any]]:
    """`count` batches of training rows drawn by the recipe's seed, without repetition: fewer where rows are few."""
    order = torch.randperm(len(loaded.train), generator=torch.Generator().manual_seed(loaded.recipe.seed))
    rows = [loaded.train[index] for index in order[: count * size].tolist()]
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    full = [chunk for chunk in chunks if len(chunk) == size] or chunks
    collate = loaded.task.collator(loaded.tokenizer)
    return [dict(collate(chunk)) for chunk in full]
