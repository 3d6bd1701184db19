"""The adapter of nn.MultiheadAttention."""

import warnings
from typing import Any, cast

import torch
from torch import nn

from .adapted import AdaptedLayer
from .config import MeloraConfig
from .errors import MeloraError
from .linear import Linear
from .shapes import block_grid, check_shape
from .substitute import call_with


class MultiheadAttention(AdaptedLayer):
    """MELoRA on the projections of nn.MultiheadAttention: query, key and value together, and the output's.

    The stacked in-projection is three d x d matrices. Mini i goes from the i-th slice of the input to the i-th slice of
    query, of key and of value: A is (n, r, d / n), shared by the three as in LoRA, and B is (n, 3 d / n, r), with the
    rows of query, key and value in this order. Each of the three updates is block-diagonal. The output projection has
    an adapter of its own, a Linear. Parameters: r (d + 3 d) + r (d + d). n=1 is peft.tuners.lora.MultiheadAttention
    (PEFT 0.21), but for an error of that: it applies the output projection's update twice (pull request 3774 of PEFT).

    The layer computes with W + dW in place of W, for the base never calls its projections as modules; that is a copy of
    both weights in every forward call. Dropout of the adapter's input is therefore not possible (LoRA ignores the
    setting, here a warning says so), nor are mixed batches.
    """

    base_layer: nn.MultiheadAttention

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, *, r: int, n: int, module_name: str, **kwargs: Any
    ) -> None:
        super().__init__(base_layer, adapter_name, r=r, n=n, module_name=module_name, **kwargs)
        out_proj = cast(nn.Linear, self.get_base_layer().out_proj)
        self.get_base_layer().out_proj = Linear(
            out_proj, adapter_name, r=r, n=n, module_name=f"{module_name}.out_proj", **kwargs
        )

    def __getattr__(self, name: str) -> Any:
        """What the base has: nn.TransformerEncoderLayer and its like read batch_first, in_proj_bias, ..."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "base_layer" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.get_base_layer(), name)

    @classmethod
    def sizes_of(cls, base: nn.Module) -> tuple[int, int]:
        width = cast(nn.MultiheadAttention, base).embed_dim
        return width, 3 * width

    @classmethod
    def check_base(cls, module_name: str, base: nn.Module, n: int, r: int) -> None:
        attention = cast(nn.MultiheadAttention, base)
        if not attention._qkv_same_embed_dim:
            raise MeloraError(
                f"{module_name}: this MultiheadAttention has kdim={attention.kdim}, vdim={attention.vdim} and "
                f"embed_dim={attention.embed_dim}; PEFT supports one size for query, key and value only: name it in "
                "exclude_modules"
            )
        check_shape(module_name, attention.embed_dim, attention.embed_dim, n, r)

    def update_layer(
        self, adapter_name: str, r: int, n: int, lora_alpha: float, config: MeloraConfig, module_name: str
    ) -> None:
        super().update_layer(adapter_name, r, n, lora_alpha, config, module_name)
        if config.lora_dropout:
            warnings.warn(
                f"{module_name}: lora_dropout has no effect on nn.MultiheadAttention, whose weights are adapted",
                stacklevel=2,
            )
        out_proj = self.get_base_layer().out_proj
        if isinstance(out_proj, Linear):  # not yet, the first time
            out_proj.update_layer(adapter_name, r, n, lora_alpha, config, f"{module_name}.out_proj")

    def adapted_forward(self, active: list[str], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """nn.MultiheadAttention's own arguments and answer: (output, attention weights or None)."""
        weights = {}
        if active:
            weights["in_proj_weight"] = self.updated_weight(active)
        out_proj = cast(Linear, self.get_base_layer().out_proj)
        if out_proj.disable_adapters and out_proj.merged_adapters:
            out_proj.unmerge()  # its own forward, which would do that, is never called
        out_active = [name for name in out_proj.active_adapters if name in out_proj.scaling]
        if out_active and not out_proj.merged_adapters and not out_proj.disable_adapters:
            weights["out_proj.base_layer.weight"] = out_proj.updated_weight(out_active)
        return call_with(self.base_layer, weights, (x, *args), kwargs)

    def mixed_forward(self, x: torch.Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Any:
        raise MeloraError(
            "adapter_names: nn.MultiheadAttention can't send the rows of a batch through different adapters, with LoRA "
            "neither; call the model once for each adapter"
        )

    def grid_of(self, weight: torch.Tensor, n: int) -> torch.Tensor:
        return block_grid(weight.unflatten(0, (3, -1)), n, rows=1, columns=2)

    def get_base_weight(self) -> torch.Tensor:
        return cast(torch.Tensor, self.get_base_layer().in_proj_weight).data

    def set_base_weight(self, weight_data: torch.Tensor) -> None:
        self.get_base_layer().in_proj_weight.data = weight_data

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """PEFT's hook for merge_and_unload and unload: the base with its own output projection again."""
        base = self.get_base_layer()
        out_proj = cast(Linear, base.out_proj)
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            out_proj.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        base.out_proj = out_proj.get_base_layer()
        return base
