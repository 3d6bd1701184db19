"""Adapters into the base weight and out again: the same for every layer type, quantised bases included."""

import warnings
from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn

from .errors import MeloraError
from .layer import MeloraLayer


@dataclass(frozen=True)
class MergeDrift:
    """How well a quantised weight took an update.

    Attributes:
        error: largest absolute difference between the merged, requantised weight and the exact sum.
        update: largest absolute number of the update itself. Where `error` is of its size, much of the update is lost.
    """

    error: float
    update: float


class MergingLayer(MeloraLayer):
    """merge and unmerge, on the layer's own `blocks_of` the base weight.

    Attributes:
        merge_drift: of the last merge, where the base is quantised.
    """

    merge_drift: MergeDrift | None = None

    def check_mergeable(self) -> None:
        """Check that a merge into this base is possible at all.

        Raises:
            MeloraError: the back end can't requantise, or its weight is in a form that can't be read back.
        """
        backend = self.quantization_backend
        if backend is not None and not backend.supports_merge:
            raise MeloraError(
                f"a base quantised by {backend.backend_name} can't be merged into: PEFT has no way to requantise it; "
                "use the adapter unmerged, or merge into the model loaded without quantisation"
            )
        if is_repacked(self.get_base_layer()):
            raise MeloraError(
                "bitsandbytes has repacked this 4-bit weight for inference on the CPU, and it can't be read back "
                "exactly: load the model again and merge before the first forward call in eval mode"
            )

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters (by default the active ones) to the base weight.

        Into a quantised base the sum is quantised again; `merge_drift` says how far that is from the exact sum.

        Args:
            safe_merge: work on a copy and refuse a result that is not finite; the layer is then left as it was.
            adapter_names: which adapters; those merged already are passed over.

        Raises:
            MeloraError: safe_merge found NaN or infinity, or the base can't be merged into.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.scaling]
        if not names:
            return
        self.check_mergeable()
        base = self.get_base_weight()
        weight = self._copy(base) if safe_merge or self.quantization_backend is not None else base
        for name in names:
            self._add(weight, name, 1.0)
        if safe_merge and not torch.isfinite(weight).all():
            raise MeloraError(
                # PEFT's words at first: code for LoRA looks for them.
                f"NaNs detected in the merged weights. The adapter {', '.join(names)} seems to be broken, so nothing "
                "was merged: load an earlier checkpoint"
            )
        if weight is not base:
            self._store(weight, base.dtype)
        if self.quantization_backend is not None:
            error, update = self.get_base_weight() - weight, weight - base
            self.merge_drift = MergeDrift(float(error.abs().max()), float(update.abs().max()))
        self.merged_adapters.extend(names)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take all merged adapters out of the base weight again, up to rounding; a quantised one is quantised again."""
        if not self.merged_adapters:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.check_mergeable()
        base = self.get_base_weight()
        weight = base if self.quantization_backend is None else self._copy(base)
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if name in self.scaling:
                self._add(weight, name, -1.0)
        if weight is not base:
            self._store(weight, base.dtype)

    def _copy(self, base: torch.Tensor) -> torch.Tensor:
        """A copy to add updates to; of a quantised weight in at least fp32, so that the sum is rounded once."""
        return base.clone() if self.quantization_backend is None else base.to(torch.float32, copy=True)

    def _store(self, weight: torch.Tensor, dtype: torch.dtype) -> None:
        bias = getattr(self.get_base_layer(), "bias", None)
        self.set_base_weight(weight.to(dtype))
        base = self.get_base_layer()
        if bias is not None and base.bias is None:
            base.bias = bias  # PEFT 0.21 builds a new HQQ layer for the new weight, and leaves the bias out

    def _add(self, weight: torch.Tensor, name: str, sign: float) -> None:
        """weight += sign * dW in place, touching what changes alone: without mixing one n-th of a linear layer's."""
        blocks = self.changed_part(weight, name)
        blocks.add_(self.delta_blocks(name).reshape(blocks.shape).to(weight.device), alpha=sign)


def is_repacked(base: nn.Module) -> bool:
    """Whether bitsandbytes has repacked this layer's weight, so that it can't be read back.

    bitsandbytes 0.50 (4 bits, on CPUs with AVX512-BF16) does that in the first forward call in eval mode, with scales
    rounded to bf16; dequantising that as if it were not repacked gives noise, for LoRA too.
    """
    state = getattr(getattr(base, "weight", None), "quant_state", None)
    return bool(getattr(state, "packing_format_for_cpu", False))
