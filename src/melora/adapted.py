"""AdaptedLayer: what forward does in every state that a layer's adapters can be in."""

from typing import Any

import torch
from peft.utils.quantization_utils import QuantizationBackend
from torch import nn

from .config import MeloraConfig
from .errors import MeloraError
from .fusion import is_fresh
from .merging import MergingLayer


class AdaptedLayer(nn.Module, MergingLayer):
    """A base layer and its adapters, as the module that takes the base's place.

    A layer type gives `adapter_output`, and may give `adapted_forward` where it can do better than adding that to the
    base's output.
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
        MergingLayer.__init__(self, base_layer, quantization_backend)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, n, lora_alpha, config, module_name)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the base layer takes and gives, with the active adapters' share, in the base's dtype.

        Raises:
            MeloraError: `adapter_names` with merged adapters, or not one name for each row. (PEFT's words, as code for
                LoRA looks for them; as for LoRA, names are ignored while adapters are disabled.)
        """
        adapter_names = kwargs.pop("adapter_names", None)
        if self._disable_adapters or self.merged_adapters:
            if adapter_names is not None and self.merged_adapters:
                raise MeloraError(
                    "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
                )
            if self._disable_adapters and self.merged_adapters:
                self.unmerge()
            active = []
        elif adapter_names is not None:
            return self.mixed_forward(x, adapter_names, *args, **kwargs)
        else:
            chosen = self._active_adapter  # as its property has it, whose calls show in the time of a decoded token
            active = [name for name in ([chosen] if isinstance(chosen, str) else chosen) if name in self.scaling]
        return self.adapted_forward(active, x, *args, **kwargs)

    def adapted_forward(self, active: list[str], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """base(x) plus the output of every adapter in `active`."""
        result = self.base_layer(x, *args, **kwargs)
        for name in active:
            result = result + self.adapter_output(name, x).to(result.dtype)
        return result

    def adapter_output(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """One adapter's share of the output, scaled."""
        raise NotImplementedError  # layers whose adapted_forward is their own are never asked

    def mixed_forward(self, x: torch.Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Any:
        """Row i of the batch goes through adapter_names[i]; "__base__", and names not in this layer, through none."""
        if len(x) != len(adapter_names):
            raise MeloraError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        rows_of: dict[str, list[int]] = {}
        for i, name in enumerate(adapter_names):
            if name in self.scaling:
                rows_of.setdefault(name, []).append(i)
        in_place = not torch.is_grad_enabled() and is_fresh(self.base_layer, result)
        return self.add_mixed(result, x, rows_of, in_place)

    def add_mixed(
        self, result: torch.Tensor, x: torch.Tensor, rows_of: dict[str, list[int]], in_place: bool
    ) -> torch.Tensor:
        """The base's output plus that of each adapter, on the rows of x that it is given; in `result` if `in_place`."""
        for name, indices in rows_of.items():
            rows = torch.tensor(indices, device=x.device)
            result = add_rows(result, rows, self.adapter_output(name, x.index_select(0, rows)), in_place)
        return result

    def autocast_dtype(self, x: torch.Tensor) -> torch.dtype:
        """The dtype that PyTorch's own products would have here: autocast's where that is on, else x's."""
        if torch._C._is_any_autocast_enabled():  # asked first, since x's device costs more to find out
            device = x.device.type
            if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
                return torch.get_autocast_dtype(device)
        return x.dtype

    def dropped(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """x after the adapter's dropout."""
        dropped: torch.Tensor = self.melora_dropout[name](x)
        return dropped

    def __repr__(self) -> str:
        return "melora." + super().__repr__()


def add_rows(result: torch.Tensor, rows: torch.Tensor, output: torch.Tensor, in_place: bool) -> torch.Tensor:
    """`result` with `output` added to some of its rows."""
    output = output.to(result.dtype)
    return result.index_add_(0, rows, output) if in_place else result.index_add(0, rows, output)
