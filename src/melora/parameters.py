"""The adapter of a bare nn.Parameter (`target_parameters`): the stacked weights of mixture-of-experts layers."""

from typing import Any, cast

import torch
from torch import nn

from .adapted import AdaptedLayer
from .config import MeloraConfig
from .errors import MeloraError
from .shapes import block_grid, check_shape
from .substitute import call_with


class ParamWrapper(AdaptedLayer):
    """MELoRA on one parameter of a module: every expert's matrix gets n minis of its own.

    For each expert e, W_e + scaling * blockdiag(B_e1 A_e1, ..., B_en A_en); n=1 is peft.tuners.lora.ParamWrapper (PEFT
    0.21), and so is the reading of shapes: (E, d_out, d_in), or (E, d_in, d_out) where the module has is_transposed
    set, or a plain (d_out, d_in). A is (n, E, r, d_in / n) and B (n, E, d_out / n, r), without E for a plain matrix:
    E r (d_in + d_out) parameters, whatever n is.

    The module runs with W + dW in place of W: a copy of W in every forward call, and no dropout and no mixed batches,
    since x is not seen here. Each wrapper adapts one parameter; two parameters of one module nest two wrappers.

    PEFT finds this class by its name. Reading the parameter from outside gives W without the adapter.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, *, parameter_name: str, **kwargs: Any) -> None:
        self.parameter_name = parameter_name
        super().__init__(base_layer, adapter_name, **kwargs)

    def sizes(self) -> tuple[int, int]:
        return parameter_sizes(self.get_base_layer(), self.parameter_name)

    def check(self, module_name: str, n: int, r: int) -> None:
        check_parameter(module_name, self.get_base_layer(), self.parameter_name, n, r)

    def update_layer(
        self, adapter_name: str, r: int, n: int, lora_alpha: float, config: MeloraConfig, module_name: str
    ) -> None:
        check_config(config)
        super().update_layer(adapter_name, r, n, lora_alpha, config, module_name)

    @property
    def experts(self) -> tuple[int, ...]:
        """(E,), or () for a plain matrix."""
        return tuple(self.get_base_weight().shape[:-2])

    def factor_shapes(self, n: int, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (n, *self.experts, r, self.in_features // n), (n, *self.experts, self.out_features // n, r)

    def adapted_forward(self, active: list[str], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not active:
            return self.base_layer(x, *args, **kwargs)
        inner, path = self.base_layer, self.parameter_name
        while isinstance(inner, ParamWrapper):
            inner, path = inner.base_layer, f"base_layer.{path}"
        return call_with(self.base_layer, {path: self.updated_weight(active)}, (x, *args), kwargs)

    def mixed_forward(self, x: torch.Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Any:
        raise MeloraError(
            f"adapter_names: the parameter {self.parameter_name} can't send the rows of a batch through different "
            "adapters, with LoRA neither; call the model once for each adapter"
        )

    def core_shape(self, n: int, r: int) -> tuple[int, ...]:
        return *self.experts, r, n, n

    def grid_of(self, weight: torch.Tensor, n: int) -> torch.Tensor:
        if is_transposed(self.get_base_layer(), weight):
            weight = weight.transpose(-2, -1)
        return block_grid(weight, n, rows=weight.dim() - 2, columns=weight.dim() - 1)

    def weight_shape(self) -> tuple[int, ...]:
        return tuple(self.get_base_weight().shape)

    def get_base_weight(self) -> torch.Tensor:
        return cast(torch.Tensor, getattr(self.get_base_layer(), self.parameter_name)).data

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """PEFT's, by the parameter: the module that holds it need not have a `weight`."""
        weight = self.get_base_weight()
        for name in self.adapter_layer_names:
            factor = getattr(self, name)._modules.get(adapter_name)  # None where only other adapters have such a part
            if factor is not None and factor.weight.device.type != "meta":
                factor.to(device or weight.device, weight.dtype)

    def set_base_weight(self, weight_data: torch.Tensor) -> None:
        getattr(self.get_base_layer(), self.parameter_name).data = weight_data

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """PEFT's hook for merge_and_unload and unload: out of all nested wrappers at once."""
        layer: nn.Module = self
        while isinstance(layer, ParamWrapper):
            if merge:
                layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            layer = layer.base_layer
        return layer

    def extra_repr(self) -> str:
        return f"parameter_name={self.parameter_name!r}"


def is_transposed(module: nn.Module, weight: torch.Tensor) -> bool:
    """Whether matrices are stored (d_in, d_out): transformers marks such mixture-of-experts modules."""
    return weight.dim() == 3 and bool(getattr(module, "is_transposed", False))


def parameter_sizes(module: nn.Module, parameter_name: str) -> tuple[int, int]:
    """(d_in, d_out) of a parameter that holds one matrix, or one for each expert."""
    weight = getattr(module, parameter_name)
    rows, columns = weight.shape[-2:]
    return (rows, columns) if is_transposed(module, weight) else (columns, rows)


def check_parameter(name: str, module: nn.Module, parameter_name: str, n: int, r: int) -> None:
    """Check that n minis of rank r fit a parameter.

    Raises:
        MeloraError: it has not 2 or 3 dimensions, is no floating-point tensor of 16 bits or more, or n or r do not fit.
    """
    weight = getattr(module, parameter_name)
    if weight.dim() not in (2, 3):
        raise MeloraError(
            f"{name}: target_parameters takes matrices and stacks of matrices, this parameter has shape "
            f"{list(weight.shape)}: take it out"
        )
    if not weight.is_floating_point() or weight.element_size() == 1:
        raise MeloraError(
            f"{name}: target_parameters takes parameters of 16 bits or more, this one is {weight.dtype}: load the "
            "model without quantisation"
        )
    check_shape(name, *parameter_sizes(module, parameter_name), n, r)


def check_config(config: MeloraConfig) -> None:
    """Refuse what can't work on a parameter, as LoRA does.

    Raises:
        MeloraError: dropout or fan_in_fan_out is set.
    """
    if config.lora_dropout:
        raise MeloraError(
            f"target_parameters does not work with lora_dropout={config.lora_dropout}: the weight is adapted, not the "
            "layer's input; set lora_dropout=0"
        )
    if config.fan_in_fan_out:
        raise MeloraError("target_parameters does not work with fan_in_fan_out: set it to False")
