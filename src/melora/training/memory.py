"""What memory a run will take, before it takes it: measured where it can be, traced where it can't, never guessed."""

import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import TrainingArguments

from ..initial import START
from .plan import count_parameters
from .prepare import Prepared
from .traced import trace_peak

_MOMENTS = 2
_FLOAT = 4  # bytes: adapter and head are trained in fp32


def estimate_memory(prepared: Prepared, args: TrainingArguments) -> dict[str, int]:
    """Bytes by what they are for, and their peak as "total"; on a GPU that of its memory.

    Args:
        prepared: on the meta device, for a dry run.
        args: the run's.

    Returns:
        process: what this process holds now, libraries and encoded rows included (not on a GPU).
        weights: of the base model, adapter and head.
        optimiser: gradients and two moments of all that is trained.
        training: the most that a step of the longest rows makes on top.
        validation: the same of an evaluation's longest rows.
        total: process, weights, optimiser and the larger of training and validation.
    """
    device = "cpu" if args.use_cpu or not torch.cuda.is_available() else "cuda"
    prepared.task.trainer_class(training=True)  # so that its libraries are counted
    counts = count_parameters(prepared.model)
    estimate = {} if device == "cuda" else {"process": int(psutil.Process().memory_info().rss)}
    estimate["weights"] = weights(prepared.model)
    estimate["optimiser"] = (counts.adapter + counts.head) * _FLOAT * (1 + _MOMENTS)
    estimate["training"] = _peak(prepared, args, device, training=True)
    estimate["validation"] = _peak(prepared, args, device, training=False)
    estimate["total"] = sum(estimate.values()) - min(estimate["training"], estimate["validation"])
    return estimate


def weights(model: torch.nn.Module) -> int:
    """Bytes of all parameters and buffers, tied ones once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def free_memory(args: TrainingArguments) -> int:
    """Bytes that are free on the GPU of the run, or on the host."""
    if args.use_cpu or not torch.cuda.is_available():
        return int(psutil.virtual_memory().available) + int(psutil.Process().memory_info().rss)
    return int(torch.cuda.mem_get_info()[0])


def disk_needed(prepared: Prepared, args: TrainingArguments) -> int:
    """Bytes of a run's folder at its largest: the kept checkpoints, the one being written, and the adapter."""
    counts = count_parameters(prepared.model)
    trained = (counts.adapter + counts.head) * _FLOAT
    kept = args.save_total_limit or 10
    adapter = adapter_bytes(prepared)
    return (kept + 1) * (adapter + trained * _MOMENTS) + adapter + tokenizer_bytes(prepared)


def adapter_bytes(prepared: Prepared) -> int:
    """Of an adapter's weights as they are saved, its head included."""
    counts = count_parameters(prepared.model)
    # What A and B are measured from lies beside them in every file.
    starts = sum(p.numel() for name, p in prepared.model.named_parameters() if name.endswith(START))
    return (counts.adapter + counts.head + starts) * _FLOAT


def free_disk(output: str | Path) -> int:
    """Bytes that are free where the run folder will be."""
    place = Path(output).expanduser().absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def tokenizer_bytes(prepared: Prepared) -> int:
    """Of the base model's tokenizer files, which every checkpoint holds."""
    folder = Path(prepared.source.path)
    files = folder.glob("*token*") if folder.is_dir() else ()
    return sum(os.path.getsize(file) for file in files)


def _peak(prepared: Prepared, args: TrainingArguments, device: str, *, training: bool) -> int:
    examples = prepared.train if training else prepared.validation
    rows = args.train_batch_size if training else args.eval_batch_size
    longest = sorted(examples, key=lambda example: -len(example["input_ids"]))[:rows]
    batch: Mapping[str, torch.Tensor] = prepared.task.collator(prepared.tokenizer)(longest)
    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None

    def step(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor | None:
        model.train(training)
        if training and args.activation_checkpointing:
            model.activation_checkpointing_enable(args.activation_checkpointing_kwargs)
        mixed = nullcontext() if half is None else torch.autocast(device, dtype=half)
        with torch.set_grad_enabled(training), mixed:
            loss = prepared.task.loss_of(model, inputs)
        return loss if training else None

    return trace_peak(prepared.model, dict(batch), step, device)
