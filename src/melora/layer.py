"""MeloraLayer: what every adapted layer holds, whatever its base: factors, scaling, state."""

import math
from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from peft.utils.quantization_utils import QuantizationBackend
from torch import nn
from transformers.pytorch_utils import Conv1D

from .config import MeloraConfig
from .shapes import check_shape


class MiniFactors(nn.Module):
    """One factor of all n minis of one adapter: `weight` of shape (n, rows, columns).

    A module of its own, named melora_A or melora_B, since PEFT's hotswap and FSDP's wrap policy look for that.
    """

    def __init__(self, n: int, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, rows, columns))

    def extra_repr(self) -> str:
        n, rows, columns = self.weight.shape
        return f"n={n}, rows={rows}, columns={columns}"


class MeloraLayer(BaseTunerLayer):
    """The adapters of one base layer: dW = scaling * blockdiag(B_1 A_1, ..., B_n A_n).

    A is (n, r, d_in / n), B is (n, d_out / n, r): r * (d_in + d_out) numbers, whatever n is.
    """

    adapter_layer_names = ("melora_A", "melora_B")
    other_param_names = ("r", "n", "lora_alpha", "scaling", "use_rslora", "melora_dropout")

    def __init__(self, base_layer: nn.Module, quantization_backend: QuantizationBackend | None = None) -> None:
        self.base_layer = base_layer
        self.quantization_backend = quantization_backend
        self.r: dict[str, int] = {}
        self.n: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.use_rslora: dict[str, bool] = {}
        self.melora_dropout = nn.ModuleDict()
        self.melora_A = nn.ModuleDict()
        self.melora_B = nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        self.in_features: int
        self.out_features: int
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())  # type: ignore[assignment]

    def update_layer(
        self, adapter_name: str, r: int, n: int, lora_alpha: float, config: MeloraConfig, module_name: str
    ) -> None:
        """Add an adapter to this layer.

        Raises:
            MeloraError: n or r does not fit the weight.
        """
        check_shape(module_name, self.in_features, self.out_features, n, r)
        self.r[adapter_name], self.n[adapter_name] = r, n
        self.lora_alpha[adapter_name], self.use_rslora[adapter_name] = lora_alpha, config.use_rslora
        self.set_scale(adapter_name, 1.0)
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout > 0.0 else nn.Identity()
        self.melora_dropout[adapter_name] = dropout
        self.melora_A[adapter_name] = MiniFactors(n, r, self.in_features // n)
        self.melora_B[adapter_name] = MiniFactors(n, self.out_features // n, r)
        self.reset_parameters(adapter_name, config.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def factors(self, adapter: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(A, B) of an adapter: (n, r, d_in / n) and (n, d_out / n, r)."""
        A, B = self.melora_A[adapter].weight, self.melora_B[adapter].weight
        return cast(torch.Tensor, A), cast(torch.Tensor, B)

    @torch.no_grad()
    def reset_parameters(self, adapter_name: str, init_weights: bool | str) -> None:
        """Initialise A and B as the reference does, or as MeloraConfig.init_weights asks."""
        A, B = self.factors(adapter_name)
        if init_weights == "gaussian":
            nn.init.normal_(A, std=1.0 / A.shape[1])
        else:
            # Kaiming-uniform with a = sqrt(5) over a mini's own fan-in, as the reference: sqrt(n / d_in).
            bound = 1.0 / math.sqrt(A.shape[2])
            nn.init.uniform_(A, -bound, bound)
        if init_weights is False:
            bound = 1.0 / math.sqrt(B.shape[2])
            nn.init.uniform_(B, -bound, bound)
        else:
            nn.init.zeros_(B)

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set an adapter's scaling to `scale` times the initial one; an adapter that is not here is ignored."""
        if adapter in self.r:
            r = self.r[adapter]
            self.scaling[adapter] = scale * self.lora_alpha[adapter] / (math.sqrt(r) if self.use_rslora[adapter] else r)

    def scale_layer(self, scale: float) -> None:
        """Multiply the scaling of the active adapters by `scale`."""
        for adapter in self.active_adapters:
            if adapter in self.scaling:
                self.scaling[adapter] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the scaling of the active adapters by `scale`; None sets the initial one again."""
        for adapter in self.active_adapters:
            if scale is None:
                self.set_scale(adapter, 1.0)
            elif adapter in self.scaling:
                self.scaling[adapter] /= scale

    def delta_blocks(self, adapter: str) -> torch.Tensor:
        """scaling * B_i A_i for every mini, (n, d_out / n, d_in / n); in fp32 where the factors are 16 bits wide."""
        A, B = self.factors(adapter)
        if A.dtype in (torch.float16, torch.bfloat16):
            A, B = A.float(), B.float()
        return torch.bmm(B, A) * self.scaling[adapter]

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """The dense update in the base weight's own layout: (d_out, d_in), or (d_in, d_out) for Conv1D."""
        delta: torch.Tensor = torch.block_diag(*self.delta_blocks(adapter)).to(self.factors(adapter)[1].dtype)
        return delta.T if isinstance(self.get_base_layer(), Conv1D) else delta

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True
