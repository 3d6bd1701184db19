"""How alike the outputs of an adapter's minis are on a batch, beside what minis with a fresh A would give."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from ..diversity import linear_cka, mean_over_pairs
from ..errors import MeloraError
from ..linear import Linear
from ..own_blocks import own_factors, own_inputs
from .data import at_most, read_split, read_validation
from .evaluate import restore
from .folder import open_run
from .recipe import parse_recipe
from .schema import apply_overrides

ROWS = 64
# Kept of every layer's input: tokens x d_in numbers, 19 MB for MiniLM's 12 layers, 1 GB for 64 layers of width 4096.
TOKENS = 1024
DRAWS = 8
_ROWS_AT_ONCE = 8


@dataclass(frozen=True)
class OutputLikeness:
    """Of one layer: linear CKA between what its minis do by themselves, over tokens.

    That is B_i A_i x_i, or with mixing or a start what stands for B_i A_i (own_blocks.py), x_i the channels that the
    mini reads.

    Attributes:
        trained: the mean over pairs of minis.
        random: the same with an untrained A (uniform, as it starts) and the trained B, the mean of DRAWS draws: what
            the likeness of the input's slices, the sizes and the number of tokens give by themselves. With a start,
            which is no random A, the minis' updates keep their column spaces and singular values, and read at random.
        random_deviation: the standard deviation of the draws.
        tokens: how many tokens.
    """

    trained: float
    random: float
    random_deviation: float
    tokens: int


@dataclass(frozen=True)
class OutputReport:
    """The layers on a batch.

    Attributes:
        data: where the rows are from.
        rows: how many.
        layers: by module; None where there is nothing to compare: one mini, an update of zero, or no linear layer (a
            convolution's minis answer at places, those of nn.MultiheadAttention and of parameters never answer by
            themselves, and an embedding's A starts at zero).
    """

    data: str
    rows: int
    layers: dict[str, OutputLikeness | None]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def measure_run(
    run: str | Path, overrides: Sequence[str] = (), *, data: str | Path | None = None, rows: int = ROWS
) -> OutputReport:
    """Run the base model with a run's adapter on some rows and compare the minis' outputs.

    The rows are drawn by data.rows_seed, and of their tokens at most TOKENS; the same on every machine.

    Args:
        run: the run folder.
        overrides: changes to its recipe, such as model.name_or_path=...
        data: take the rows from this file instead of the recipe's validation data.
        rows: at most so many.

    Raises:
        MeloraError: no run, a damaged one, one of another method, another base model, or bad data.
    """
    if rows < 1:
        raise MeloraError(f"rows: must be 1 or more, got {rows}; e.g. --rows {ROWS}")
    path, recipe = open_run(run)
    method = recipe.adapter.get("method", "melora")
    if method != "melora":
        raise MeloraError(f"run {path}: its method is {method}, which has no minis whose outputs could be compared")
    spec = parse_recipe(apply_overrides(recipe.to_dict(), overrides), f"run {path}").data
    split = read_validation(spec) if data is None else read_split("validation", data, spec)
    split = at_most(split, rows, spec)
    restored = restore(run, overrides)
    task, tokenizer = restored.task, restored.tokenizer
    examples = task.encode(split, tokenizer, spec).examples
    collate = task.collator(tokenizer)
    batches = [dict(collate(examples[i : i + _ROWS_AT_ONCE])) for i in range(0, len(examples), _ROWS_AT_ONCE)]
    model = restored.with_adapter()
    with torch.no_grad(), _inputs_of(model, batches) as inputs:
        for batch in inputs.batches():
            task.loss_of(model, batch)
    return OutputReport(str(split.path), len(examples), likeness(model, inputs.of_layers()))


def likeness(
    model: PeftModel, inputs: Mapping[str, torch.Tensor], *, seed: int = 0
) -> dict[str, OutputLikeness | None]:
    """Compare the minis' outputs, layer by layer; see OutputReport.

    Args:
        model: with one active MELoRA adapter, in eval mode.
        inputs: module -> its input, (tokens, d_in); modules that are not in it have None in the result.
        seed: draws the untrained A.
    """
    found: dict[str, OutputLikeness | None] = {}
    adapter = model.active_adapter
    for name, layer in _layers(model).items():
        x = inputs.get(name)
        found[name] = None if x is None or len(x) < 2 else _of_layer(layer, adapter, x, seed)
    return found


@torch.no_grad()
def _of_layer(layer: Linear, adapter: str, x: torch.Tensor, seed: int) -> OutputLikeness | None:
    A, B = own_factors(layer, adapter)
    slices = own_inputs(layer, adapter, x).transpose(0, 1).to(A.dtype)

    def mean_cka(A: torch.Tensor) -> float | None:
        return mean_over_pairs(linear_cka((slices @ A.mT @ B.mT).transpose(0, 1)))

    trained = mean_cka(A)
    if trained is None:
        return None
    generator = torch.Generator().manual_seed(seed)
    # CKA knows no scale, so the width of the distribution does not matter.
    draws = [mean_cka((2 * torch.rand(A.shape, generator=generator) - 1).to(A)) or 0.0 for _ in range(DRAWS)]
    mean = sum(draws) / DRAWS
    deviation = math.sqrt(sum((value - mean) ** 2 for value in draws) / (DRAWS - 1))
    return OutputLikeness(trained, mean, deviation, len(x))


def _layers(model: PeftModel) -> dict[str, Linear]:
    """The adapted linear layers under the base model's own names."""
    return {name: module for name, module in model.get_base_model().named_modules() if isinstance(module, Linear)}


class _Inputs:
    """What the layers of a model were given, of a few tokens drawn from all batches."""

    def __init__(self, batches: Sequence[dict[str, torch.Tensor]]) -> None:
        self._batches = batches
        masks = [_mask(batch).bool().flatten() for batch in batches]
        places = torch.cat([torch.arange(len(mask)) for mask in masks])
        batch_of = torch.cat([torch.full((len(mask),), k) for k, mask in enumerate(masks)])
        real = torch.cat(masks).nonzero()[:, 0]
        drawn = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[:TOKENS]
        kept = real[drawn.sort().values]
        self._places = [places[kept[batch_of[kept] == k]] for k in range(len(batches))]
        self._now = 0
        self._parts: dict[str, list[torch.Tensor]] = {}

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """The batches, each as the one that is looked at from then on."""
        for number, batch in enumerate(self._batches):
            self._now = number
            yield dict(batch)

    def take(self, name: str, x: torch.Tensor) -> None:
        """Keep a layer's input: of one that sees all tokens the drawn ones, of others (a pooler, an expert) all."""
        flat = x.detach().reshape(-1, x.shape[-1])
        if len(flat) == _mask(self._batches[self._now]).numel():
            flat = flat[self._places[self._now]]
        self._parts.setdefault(name, []).append(flat.clone())

    def of_layers(self) -> dict[str, torch.Tensor]:
        return {name: torch.cat(parts)[:TOKENS] for name, parts in self._parts.items()}


@contextmanager
def _inputs_of(model: PeftModel, batches: Sequence[dict[str, torch.Tensor]]) -> Iterator[_Inputs]:
    """Collects the inputs of all adapted linear layers within the block."""
    inputs = _Inputs(batches)

    def keep(name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs.take(name, args[0] if args else kwargs["x"])

        return hook

    handles = [layer.register_forward_pre_hook(keep(name), with_kwargs=True) for name, layer in _layers(model).items()]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _mask(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(rows, length), 1 where there is no padding."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"]) if mask is None else mask
