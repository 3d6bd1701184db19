"""The adapter of linear bases."""

from typing import Any, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from .adapted import AdaptedLayer
from .fusion import dense_weight
from .ops import block_lora
from .shapes import diagonal_blocks


class Linear(AdaptedLayer):
    """MELoRA on nn.Linear, transformers' Conv1D, and quantised linear layers that PEFT has a back end for.

    y = base(x) + scaling * concat_i(B_i A_i drop(x)_i); n=1 is peft.tuners.lora.Linear (PEFT 0.21).
    """

    def adapted_forward(self, active: list[str], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """x (..., d_in) -> (..., d_out), in the dtype that the base layer answers with."""
        weight = None if args or kwargs or not active else dense_weight(self.base_layer, x)
        if weight is None:
            return cast(torch.Tensor, super().adapted_forward(active, x, *args, **kwargs))
        first, *others = active
        result = self.adapter_output(first, x, weight, cast(torch.Tensor | None, self.base_layer.bias))
        for name in others:
            result = result + self.adapter_output(name, x).to(result.dtype)
        return result

    def adapter_output(
        self, name: str, x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The adapter's share of the output, with the base's where `weight` is given, in x's or autocast's dtype."""
        dtype = self.autocast_dtype(x)
        if dtype != x.dtype:
            # The casts that F.linear does for the base, done once here for base and adapter.
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

    def blocks_of(self, weight: torch.Tensor, n: int) -> torch.Tensor:
        return diagonal_blocks(weight.T if isinstance(self.get_base_layer(), Conv1D) else weight, n)

    def weight_shape(self) -> tuple[int, ...]:
        shape = super().weight_shape()
        return shape[::-1] if isinstance(self.get_base_layer(), Conv1D) else shape
