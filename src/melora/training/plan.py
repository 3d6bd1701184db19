"""What a run will train, and in how many steps, worked out from shapes."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainingArguments
from transformers.pytorch_utils import Conv1D

from ..initial import START
from .adapter import adapter_and_head
from .moved import module_of
from .quantized import number_of_weights


@dataclass(frozen=True)
class ModulePlan:
    """A module that is adapted, or trained where it is; n and r are None for methods that have no such thing."""

    name: str
    d_in: int
    d_out: int
    n: int | None
    r: int | None
    parameters: int

    @property
    def equivalent_rank(self) -> int | None:
        return None if self.r is None else (self.n or 1) * self.r

    @property
    def lora_parameters(self) -> int | None:
        """Of a LoRA of the same rank."""
        return None if self.equivalent_rank is None else self.equivalent_rank * (self.d_in + self.d_out)


@dataclass(frozen=True)
class Counts:
    """Parameters by role; lora is what a LoRA of equal rank would need in the adapter's place, None if undefined."""

    adapter: int
    head: int
    base: int
    lora: int | None

    def to_dict(self) -> dict[str, int | None]:
        return asdict(self)


def plan_modules(model: PeftModel) -> list[ModulePlan]:
    """The adapted modules, in the model's order."""
    adapter, _ = adapter_and_head(model)
    parameters: dict[str, int] = {}
    for name, parameter in adapter.items():
        module = module_of(name)
        parameters[module] = parameters.get(module, 0) + parameter.numel()
    inner = model.get_base_model()
    plans = []
    for name, count in parameters.items():
        layer = inner.get_submodule(name)
        d_out, d_in = _sizes(layer)
        plans.append(ModulePlan(name, d_in, d_out, _setting(layer, "n"), _setting(layer, "r"), count))
    return plans


def count_parameters(model: PeftModel) -> Counts:
    """Parameters of adapter, head (modules trained whole) and frozen base."""
    adapter, head = adapter_and_head(model)
    counts = [sum(parameter.numel() for parameter in group.values()) for group in (adapter, head)]
    # PEFT keeps the untrained copy of a module that is trained whole; it is no part of the model. Nor is a start.
    kept = (
        value
        for name, value in model.named_parameters()
        if ".original_module." not in name and not name.endswith(START)
    )
    total = sum(map(number_of_weights, kept))
    lora = [module.lora_parameters for module in plan_modules(model)]
    known = [value for value in lora if value is not None]
    return Counts(counts[0], counts[1], total - sum(counts), sum(known) if lora and len(known) == len(lora) else None)


def count_steps(args: TrainingArguments, rows: int) -> int:
    """Optimiser steps of a run, on all its ranks together."""
    if args.max_steps > 0:
        return int(args.max_steps)
    batches = math.ceil(math.ceil(rows / args.train_batch_size) / args.world_size)
    per_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    steps: int = math.ceil(args.num_train_epochs * per_epoch)
    return steps


def batches_of_evaluation(args: TrainingArguments, rows: int) -> int:
    """How many batches one evaluation has, on each rank."""
    batches: int = math.ceil(rows / (args.eval_batch_size * args.world_size))
    return batches


def _sizes(layer: Any) -> tuple[int, int]:
    base = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    d_in, d_out = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    if d_in and d_out:
        return int(d_out), int(d_in)
    if isinstance(base, Conv1D):  # its weight is stored transposed
        return int(base.nf), int(base.nx)
    weight = getattr(base, "weight", None)
    if weight is None:
        weight = max(base.parameters(recurse=False), key=torch.Tensor.numel)
    return int(weight.shape[0]), math.prod(weight.shape[1:])


def _setting(layer: Any, name: str) -> int | None:
    values = getattr(layer, name, None)
    value = next(iter(values.values()), None) if isinstance(values, dict) else None
    return value if isinstance(value, int) else None
