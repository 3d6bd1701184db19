"""The adapter of linear bases."""

from typing import Any, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from .adapted import AdaptedLayer, add_rows
from .factors import wide
from .fusion import dense_weight, is_fresh, may_add
from .ops import add_block_lora, block_lora, routed_block_lora
from .ops.mixing import dense_columns
from .permutation import lora_of, mini_blocks
from .shapes import block_grid


class Linear(AdaptedLayer):
    """MELoRA on nn.Linear, transformers' Conv1D, and quantised linear layers that PEFT has a back end for.

    y = base(x) + scaling * concat_i(B_i A_i drop(x)_i); n=1 is peft.tuners.lora.Linear (PEFT 0.21).
    """

    permutes = True

    def adapted_forward(self, active: list[str], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """x (..., d_in) -> (..., d_out), in the dtype that the base layer answers with."""
        base = self._modules["base_layer"]  # in decoding, nn.Module's attribute look-up is a tenth of the time
        assert base is not None
        weight = None if args or kwargs or not active else dense_weight(base, x)
        if weight is None:
            result = cast(torch.Tensor, base(x, *args, **kwargs))
            fresh = bool(active) and is_fresh(base, result)
        else:
            first, *active = active
            dtype = self.autocast_dtype(x)
            bias = cast(torch.Tensor | None, base.bias)
            if dtype != x.dtype or (weight.dtype != dtype and torch.is_autocast_enabled(x.device.type)):
                # The casts that autocast does for the base's F.linear, which backward would miss; x may have its own.
                bias = None if bias is None else bias.to(dtype)
                weight = weight.to(dtype)
            A, B, scaling, dropout = self._arguments(first, dtype)
            cast_x = x if dtype == x.dtype else x.to(dtype)
            kwargs = self._mixing(first, dtype)
            result, fresh = block_lora(cast_x, A, B, scaling, weight=weight, bias=bias, dropout=dropout, **kwargs), True
        for name in active:
            result = self._add_output(result, name, x, in_place=fresh)
            fresh = True
        return result

    def _add_output(self, result: torch.Tensor, name: str, x: torch.Tensor, in_place: bool) -> torch.Tensor:
        """result + the adapter's share, into `result` itself where `in_place` allows."""
        dtype = self.autocast_dtype(x)
        if not may_add(result, x, dtype):
            return result + self.adapter_output(name, x).to(result.dtype)
        A, B, scaling, dropout = self._arguments(name, dtype)
        kwargs = self._mixing(name, dtype)
        return add_block_lora(result, x.to(dtype), A, B, scaling, dropout=dropout, in_place=in_place, **kwargs)

    def add_mixed(
        self, result: torch.Tensor, x: torch.Tensor, rows_of: dict[str, list[int]], in_place: bool
    ) -> torch.Tensor:
        """All adapters of one shape in one grouped product; dropout, which has no use here, in the loop."""
        dtype = self.autocast_dtype(x)
        groups: dict[tuple[Any, ...], tuple[list[str], list[torch.Tensor], list[torch.Tensor]]] = {}
        dropouts = cast(nn.ModuleDict, self._modules["melora_dropout"])._modules
        for name in rows_of:  # hundreds of times in a call: what is looked up here shows in its time
            plain = self.permute[name] == "none"
            A, B = self.factors(name) if plain else self._lora_of(name)
            key = A.shape, A.dtype, B.dtype, self.mixing[name] if plain else "none", _rate(dropouts[name]) > 0.0
            if (group := groups.get(key)) is None:
                group = groups[key] = [], [], []
            group[0].append(name)
            group[1].append(A)
            group[2].append(B)
        for (*_, mixing, dropped), (names, all_A, all_B) in groups.items():
            if len(names) == 1 or dropped:
                result = super().add_mixed(result, x, {name: rows_of[name] for name in names}, in_place)
                continue
            # Stacked anew in each call: a batch has no more adapters than rows, and a cache of stacks could not see
            # all ways to change a factor (a write through .data leaves no trace).
            scaling = torch.tensor([self.scaling[name] for name in names], dtype=dtype, device=x.device)
            factors = torch.stack(all_A).to(dtype), torch.stack(all_B).to(dtype), scaling
            core = torch.stack([self._mixing(name, dtype)["core"] for name in names]) if mixing == "learned" else None
            owned = [rows_of[name] for name in names]
            rows, output = routed_block_lora(x, owned, *factors, dtype=dtype, core=core, shuffle=mixing == "shuffle")
            result = add_rows(result, rows, output, in_place)
        return result

    def adapter_output(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """The adapter's share of the output, in x's or autocast's dtype."""
        dtype = self.autocast_dtype(x)
        A, B, scaling, dropout = self._arguments(name, dtype)
        return block_lora(x.to(dtype), A, B, scaling, dropout=dropout, **self._mixing(name, dtype))

    def _arguments(self, name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, float, float]:
        """A and B in `dtype`, scaling, and the dropout that applies now."""
        A, B = self.factors(name) if self.permute[name] == "none" else self._lora_of(name)
        dropout = cast(nn.ModuleDict, self._modules["melora_dropout"])._modules[name]
        return (
            A if A.dtype == dtype else A.to(dtype),  # the test is 10 times cheaper than a cast to the same dtype
            B if B.dtype == dtype else B.to(dtype),
            self.scaling[name],
            _rate(dropout),
        )

    def _mixing(self, name: str, dtype: torch.dtype) -> dict[str, Any]:
        """The operation's arguments for an adapter that mixes ranks across blocks."""
        if self.mixing[name] == "none" or self.permute[name] != "none":
            return {}
        core = self.core(name)
        return {"shuffle": True} if core is None else {"core": core.to(dtype)}

    def _lora_of(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B of the LoRA of rank n * r that an adapter on permuted channels is, mixing included."""
        A, B = self.factors(name)
        columns = dense_columns(B, self.core(name), self.mixing[name] == "shuffle")
        return lora_of(A, columns, self.order(name))

    def delta_blocks(self, adapter: str) -> torch.Tensor:
        if self.permute[adapter] == "none":
            return super().delta_blocks(adapter)
        return self.product(*map(wide, self._lora_of(adapter))) * self.scaling[adapter]

    def changed_part(self, weight: torch.Tensor, adapter: str) -> torch.Tensor:
        return super().changed_part(weight, adapter) if self.permute[adapter] == "none" else self.blocks_of(weight, 1)

    def start_blocks(self, weight: torch.Tensor, adapter: str) -> torch.Tensor:
        matrix = self.in_base_layout(weight)  # (d_out, d_in): transposing undoes itself
        return mini_blocks(matrix, self.n[adapter], self.permute[adapter])

    def grid_of(self, weight: torch.Tensor, n: int) -> torch.Tensor:
        return block_grid(weight.T if isinstance(self.get_base_layer(), Conv1D) else weight, n)

    def in_base_layout(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.T if isinstance(self.get_base_layer(), Conv1D) else weight

    def weight_shape(self) -> tuple[int, ...]:
        shape = super().weight_shape()
        return shape[::-1] if isinstance(self.get_base_layer(), Conv1D) else shape


def _rate(dropout: nn.Module | None) -> float:
    """The rate that applies now."""
    return dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
