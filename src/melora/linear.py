"""The adapter of linear bases: forward, merge, unmerge."""

import warnings
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from peft.utils.quantization_utils import QuantizationBackend
from torch import nn
from transformers.pytorch_utils import Conv1D

from .config import MeloraConfig
from .errors import MeloraError
from .fusion import dense_weight
from .layer import MeloraLayer
from .ops import block_lora


class Linear(nn.Module, MeloraLayer):
    """MELoRA on nn.Linear, transformers' Conv1D, and quantised linear layers that PEFT has a back end for.

    y = base(x) + scaling * concat_i(B_i A_i drop(x)_i); n=1 is peft.tuners.lora.Linear (PEFT 0.21).
    """

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        *,
        r: int,
        n: int,
        lora_alpha: float,
        config: MeloraConfig,
        module_name: str,
        quantization_backend: QuantizationBackend | None = None,
    ) -> None:
        super().__init__()
        MeloraLayer.__init__(self, base_layer, quantization_backend)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, n, lora_alpha, config, module_name)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """x (..., d_in) -> (..., d_out), in the dtype that the base layer answers with."""
        adapter_names = kwargs.pop("adapter_names", None)
        if self._disable_adapters or self.merged_adapters:
            if adapter_names is not None:
                state = "merged: call unmerge_adapter()" if self.merged_adapters else "disabled: enable them"
                raise MeloraError(f"adapter_names were passed while adapters are {state} first, or leave the names out")
            if self._disable_adapters and self.merged_adapters:
                self.unmerge()
            active = []
        elif adapter_names is not None:
            return self._mixed_forward(x, adapter_names, *args, **kwargs)
        else:
            active = [name for name in self.active_adapters if name in self.scaling]

        weight = None if args or kwargs or not active else dense_weight(self.base_layer, x)
        result: torch.Tensor
        if weight is None:
            result = self.base_layer(x, *args, **kwargs)
        else:
            result = self._adapter_output(active.pop(0), x, weight, cast(torch.Tensor | None, self.base_layer.bias))
        for name in active:
            result = result + self._adapter_output(name, x).to(result.dtype)
        return result

    def _adapter_output(
        self, name: str, x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The adapter's share of the output, with the base's where `weight` is given, in x's or autocast's dtype."""
        dtype = x.dtype
        if dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
            # The casts that F.linear does for the base, done once here for base and adapter.
            dtype = torch.get_autocast_dtype(x.device.type)
            x = x.to(dtype)
            weight = None if weight is None else weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        A, B = self.factors(name)
        dropout = self.melora_dropout[name]
        return block_lora(
            x,
            A if A.dtype == dtype else A.to(dtype),  # the test is 10 times cheaper than a cast to the same dtype
            B if B.dtype == dtype else B.to(dtype),
            self.scaling[name],
            weight=weight,
            bias=bias,
            dropout=dropout.p if dropout.training and isinstance(dropout, nn.Dropout) else 0.0,
        )

    def _mixed_forward(self, x: torch.Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Row i of the batch goes through adapter_names[i]; "__base__", and names not in this layer, through none."""
        if len(x) != len(adapter_names):
            raise MeloraError(f"adapter_names holds {len(adapter_names)} names for {len(x)} inputs: one for each")
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        for name in sorted(set(adapter_names) & self.scaling.keys()):
            rows = torch.tensor([i for i, other in enumerate(adapter_names) if other == name], device=x.device)
            output = self._adapter_output(name, x.index_select(0, rows))
            result = result.index_add(0, rows, output.to(result.dtype))
        return result

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters (by default the active ones) to the base weight.

        Args:
            safe_merge: work on a copy and refuse a result that is not finite; the layer is then left as it was.
            adapter_names: which adapters; those merged already are passed over.

        Raises:
            MeloraError: safe_merge found NaN or infinity.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.scaling]
        if not names:
            return
        weight = self.get_base_weight()
        if safe_merge:
            weight = weight.clone()
        for name in names:
            self._add_blocks(weight, name, 1.0)
        if safe_merge and not torch.isfinite(weight).all():
            raise MeloraError(
                f"merging {', '.join(names)} would give NaN or infinite weights, so nothing was merged: "
                "the adapter seems broken, load an earlier checkpoint"
            )
        if safe_merge or self.quantization_backend is not None:
            self.set_base_weight(weight)
        self.merged_adapters.extend(names)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take all merged adapters out of the base weight again, up to rounding."""
        if not self.merged_adapters:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        weight = self.get_base_weight()
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if name in self.scaling:
                self._add_blocks(weight, name, -1.0)
        if self.quantization_backend is not None:
            self.set_base_weight(weight)

    def _add_blocks(self, weight: torch.Tensor, name: str, sign: float) -> None:
        """weight += sign * dW in place, touching the diagonal blocks alone: one n-th of the weight."""
        blocks = self.delta_blocks(name)
        dense = weight.T if isinstance(self.get_base_layer(), Conv1D) else weight
        for block, delta in zip(_diagonal_blocks(dense, self.n[name]), blocks, strict=True):
            block.add_(delta.to(block.device), alpha=sign)

    def __repr__(self) -> str:
        return "melora." + super().__repr__()


def _diagonal_blocks(weight: torch.Tensor, n: int) -> list[torch.Tensor]:
    """The n diagonal blocks of a (d_out, d_in) weight, as views."""
    rows, columns = weight.shape[0] // n, weight.shape[1] // n
    return [weight[i * rows : (i + 1) * rows, i * columns : (i + 1) * columns] for i in range(n)]
