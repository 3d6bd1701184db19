"""The adapter of nn.Embedding."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from .adapted import AdaptedLayer
from .errors import MeloraError
from .factors import wide
from .ops.mixing import dense_columns, mix
from .shapes import check_rank, ways_out


class Embedding(AdaptedLayer):
    """MELoRA on nn.Embedding: n splits the width d of the vectors, and B alone is block-diagonal.

    y = base(id) + scaling * concat_i(B_i A_i[:, id]); n=1 is peft.tuners.lora.Embedding (PEFT 0.21).

    A is (n, r, V), one row of V numbers for each of the n * r ranks: a token has no slices to give to the minis, so
    every mini reads the whole vocabulary. B is (n, d / n, r). Parameters: n r V + r d, against n r (V + d) of a LoRA of
    the same rank. Since V is the large side, little is saved: n r V is what a LoRA of rank n * r pays for A, too. Where
    parameters count, train few rows (trainable_token_indices), or use n=1 here by n_pattern.

    The table is V x d, so dW is concat_i((B_i A_i)^T), of rank up to n * r. As in LoRA: A starts at zero and B normal,
    dropout is not used, and padding_idx, max_norm, norm_type, scale_grad_by_freq and embed_scale are those of the base.
    Unlike LoRA, whose backward pass fails there, a base with sparse=True gives A a dense gradient.
    """

    adapter_layer_names = ("melora_embedding_A", "melora_embedding_B")

    @classmethod
    def check_base(cls, module_name: str, base: nn.Module, n: int, r: int) -> None:
        vocabulary, width = cls.sizes_of(base)
        if width % n:
            raise MeloraError(f"{module_name}: n={n} does not divide the embedding's width {width}; {ways_out(width)}")
        check_rank(module_name, vocabulary, width, n, r)

    @classmethod
    def block_sizes(cls, module_name: str, base: nn.Module, n: int) -> tuple[int, int]:
        vocabulary, width = cls.sizes_of(base)
        return width // n, vocabulary

    def factor_shapes(self, n: int, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (n, r, self.in_features), (n, self.out_features // n, r)

    @torch.no_grad()
    def reset_parameters(self, adapter_name: str, init_weights: bool | str) -> None:
        """A zero and B normal, as LoRA's embedding; with init_weights=False both normal."""
        A, B = (factor.weight for factor in self.mini_factors(adapter_name))
        nn.init.normal_(B)
        if init_weights is False:
            nn.init.normal_(A)
        else:
            nn.init.zeros_(A)
        self._reset_core(adapter_name, init_weights)

    def adapter_output(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """x (...), token ids -> (..., d)."""
        A, B = self.factors(name)
        base = cast(nn.Embedding, self.get_base_layer())
        u = F.embedding(
            x,
            A.flatten(0, 1).T,
            padding_idx=base.padding_idx,
            max_norm=base.max_norm,
            norm_type=base.norm_type,
            scale_grad_by_freq=base.scale_grad_by_freq,
        )
        n, block_out, _ = B.shape
        u = u.reshape(-1, n, B.shape[2]).transpose(0, 1)
        if self.mixing[name] != "none":
            u = mix(u, self.core(name), self.mixing[name] == "shuffle")
        minis = torch.bmm(u, B.transpose(1, 2))
        output = minis.transpose(0, 1).reshape(*x.shape, n * block_out) * self.scaling[name]
        scale = self._get_embed_scale()  # Gemma's embeddings multiply their output; a merged update would be, too
        if scale is not None:
            output = output * scale.to(output.dtype)
        return output

    def delta_blocks(self, adapter: str) -> torch.Tensor:
        if self.mixing[adapter] == "none":
            return super().delta_blocks(adapter)
        A, B = map(wide, self.factors(adapter))
        core = self.core(adapter)
        # The sum over j of the blocks (i, j), without n^2 blocks in memory.
        columns = dense_columns(B, None if core is None else core.to(B.dtype), self.mixing[adapter] == "shuffle")
        update: torch.Tensor = columns @ A.flatten(0, 1) * self.scaling[adapter]
        return self.blocks_of(update.T, A.shape[0])

    def changed_part(self, weight: torch.Tensor, adapter: str) -> torch.Tensor:
        return self.blocks_of(weight, self.n[adapter])

    def blocks_of(self, weight: torch.Tensor, n: int) -> torch.Tensor:
        return cast(torch.Tensor, weight.T.unflatten(0, (n, -1)))

    def weight_shape(self) -> tuple[int, ...]:
        return self.in_features, self.out_features
