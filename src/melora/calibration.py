"""Which channels go together on a batch: the order of an adapter with permute="correlation"."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .errors import MeloraError
from .layer import MeloraLayer
from .undisturbed import undisturbed

TOKENS = 2048
"""Of each layer's input and output, the first so many are looked at: enough for a correlation, and little memory."""

Forward = Callable[[Mapping[str, Any]], Any]


def calibrate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    adapter_name: str = "default",
    *,
    forward: Forward | None = None,
) -> int:
    """Find the order of channels for every layer of an adapter with permute="correlation", before it is trained.

    Channels whose values rise and fall together over tokens come to the same mini: inputs by the layer's input, outputs
    by the base layer's output. A mini starts with the channel of the largest sum of |Pearson's r| to those left, and
    takes the channel of the largest sum to its own until it is full. The order is saved with the adapter, so that
    nobody has to find it again.

    Padding is passed over: tokens that a batch's attention_mask (batch, sequence) has 0 for, wherever a layer's values
    have that shape before their channels.

    Args:
        model: a PeftModel, or a model with MELoRA layers in it.
        batches: one or a few, each the keyword arguments of the model's forward.
        adapter_name: which adapter.
        forward: how to run the model on a batch; by default model(**batch).

    Returns:
        how many layers got an order.

    Raises:
        MeloraError: no layer has such an adapter, it has an order already, an adapter is merged, or a layer saw fewer
            than two tokens or a value that is not finite. Nothing is changed then.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, MeloraLayer) and module.permute.get(adapter_name) == "correlation"
    }
    if not layers:
        raise MeloraError(
            f"adapter {adapter_name!r}: no layer has permute='correlation', so there is none to calibrate"
        )
    for name, layer in layers.items():
        if layer.is_ordered(adapter_name):
            raise MeloraError(f"{name}: adapter {adapter_name!r} has its order already: calibrate a fresh adapter")
    _check_unmerged(model)
    seen = {name: _Seen() for name in layers}
    _observe(model, layers, seen, batches, forward or (lambda batch: model(**batch)))
    orders = {
        name: torch.cat([_order(name, side, layer.n[adapter_name]) for side in seen[name].sides])
        for name, layer in layers.items()
    }
    for name, layer in layers.items():
        layer.set_order(adapter_name, orders[name])
    return len(layers)


def _check_unmerged(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and module.merged:
            raise MeloraError(
                f"{name}: adapter {module.merged_adapters[0]!r} is merged into the weight, whose own output is what "
                "calibrate looks at: call unmerge_adapter() first"
            )


class _Seen:
    """What went into one base layer and came out of it: lists of (tokens, channels), on the CPU in fp32.

    Attributes:
        mask: the batch's attention_mask, where it has one.
    """

    mask: torch.Tensor | None = None

    def __init__(self) -> None:
        self.sides: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        for kept, value in zip(self.sides, (args[0], output), strict=True):
            missing = TOKENS - sum(len(part) for part in kept)
            if missing > 0:
                kept.append(self._tokens(value.detach())[:missing].to("cpu", torch.float32))

    def _tokens(self, value: torch.Tensor) -> torch.Tensor:
        """value (..., channels) as (tokens, channels), without padding."""
        if self.mask is not None and self.mask.shape == value.shape[:-1]:
            return value[self.mask.to(value.device) != 0]
        return value.flatten(0, -2)


def _observe(
    model: nn.Module,
    layers: Mapping[str, MeloraLayer],
    seen: Mapping[str, _Seen],
    batches: Iterable[Mapping[str, Any]],
    forward: Forward,
) -> None:
    """Run the batches with the layers' adapters disabled and without dropout, and put everything back."""
    with undisturbed(model, seed=0), torch.no_grad(), ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.get_base_layer().register_forward_hook(seen[name]).remove)
            # Not by enable_adapters, which freezes the factors, and afterwards trains those of every active adapter.
            stack.callback(setattr, layer, "_disable_adapters", layer._disable_adapters)
            layer._disable_adapters = True
        for batch in batches:
            mask = batch.get("attention_mask")
            for one in seen.values():
                one.mask = mask if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None
            forward(batch)


def _order(module: str, parts: list[torch.Tensor], n: int) -> torch.Tensor:
    values = torch.cat(parts).double() if parts else torch.empty(0, 1)
    if len(values) < 2:
        raise MeloraError(f"{module}: saw {len(values)} tokens, and a correlation takes two: give it longer batches")
    if not values.isfinite().all():
        raise MeloraError(f"{module}: a value on the batches is not finite; check the data and the base model")
    return gathered(correlation(values), n).to(torch.int32)


def correlation(values: torch.Tensor) -> torch.Tensor:
    """|Pearson's r| between columns: (tokens, d) -> (d, d), 0 for a constant column."""
    centred = values - values.mean(0)
    norm = centred.norm(dim=0)
    constant = norm <= 1e-12 * values.norm(dim=0)
    unit = torch.where(constant, 0.0, centred / norm)
    return (unit.T @ unit).abs().clamp(max=1.0)


def gathered(affinity: torch.Tensor, n: int) -> torch.Tensor:
    """The order of rows in n runs of equal length, each of rows that are alike: (d, d), at least 0 -> (d,), int64.

    A run starts with the row of the largest sum among those left, and takes the one most like the run until it is full.
    """
    size = len(affinity) // n
    total = affinity.sum(1)
    taken = torch.zeros(len(affinity), dtype=torch.bool)
    order: list[int] = []
    for _ in range(n):
        likeness = total
        for _ in range(size):
            row = int(torch.where(taken, -1.0, likeness).argmax())
            likeness = affinity[row] if likeness is total else likeness + affinity[row]
            total = total - affinity[row]
            taken[row] = True
            order.append(row)
    return torch.tensor(order)
