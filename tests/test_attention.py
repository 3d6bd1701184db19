"""What is special about nn.MultiheadAttention: three projections in one weight, and a fourth that is never called."""

import copy
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

from melora import MeloraConfig, MeloraError
from melora.attention import MultiheadAttention


class Holder(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        y: tuple[torch.Tensor, torch.Tensor | None] = self.layer(x, x, x, **kwargs)
        return y


def adapt(base: nn.Module, **kwargs: Any) -> Any:
    settings = {"r": 2, "n": 4, "init_weights": False, "target_modules": ["layer"], "lora_alpha": 2, **kwargs}
    return get_peft_model(Holder(base.double()), MeloraConfig(**settings)).eval()


def test_each_of_query_key_and_value_is_block_diagonal() -> None:
    layer = adapt(nn.MultiheadAttention(8, 2)).base_model.model.layer
    assert isinstance(layer, MultiheadAttention)
    for update in layer.get_delta_weight("default").unflatten(0, (3, 8)):
        blocks = update.unflatten(0, (4, 2)).unflatten(2, (4, 2)).transpose(1, 2)
        for i in range(4):
            for j in range(4):
                assert bool(blocks[i, j].any()) == (i == j)


def test_masks_and_attention_weights_pass_through() -> None:
    model = adapt(nn.MultiheadAttention(8, 2, batch_first=True))
    x = torch.randn(3, 5, 8).double()
    mask = torch.triu(torch.ones(5, 5, dtype=torch.bool), diagonal=1)
    y, weights = model(x, attn_mask=mask)
    assert weights.shape == (3, 5, 5)
    assert not weights[:, mask].any()
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(x, attn_mask=mask)[0], y)
    assert merged(x, need_weights=False)[1] is None


def test_in_proj_and_out_proj_may_be_merged_apart() -> None:
    model = adapt(nn.MultiheadAttention(8, 2))
    layer, x = model.base_model.model.layer, torch.randn(3, 5, 8).double()
    expected = model(x)[0]
    layer.merge()
    torch.testing.assert_close(model(x)[0], expected)
    layer.get_base_layer().out_proj.merge()
    torch.testing.assert_close(model(x)[0], expected)
    layer.unmerge()
    torch.testing.assert_close(model(x)[0], expected)


def test_attributes_of_the_base_are_there() -> None:
    layer = copy.deepcopy(adapt(nn.MultiheadAttention(8, 2, batch_first=True)).base_model.model.layer)
    assert (layer.num_heads, layer.batch_first, layer.in_proj_bias.shape) == (2, True, (24,))
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = layer.nothing_of_that_name


def test_dropout_has_no_effect_and_says_so() -> None:
    with pytest.warns(UserWarning, match=r"layer: lora_dropout has no effect on nn\.MultiheadAttention"):
        model = adapt(nn.MultiheadAttention(8, 2), lora_dropout=0.5).train()
    x = torch.randn(3, 5, 8).double()
    assert torch.equal(model(x)[0], model(x)[0])


def test_different_sizes_of_key_and_value() -> None:
    with pytest.raises(
        MeloraError, match=r"layer: this MultiheadAttention has kdim=4, vdim=6 and embed_dim=8; PEFT supp"
    ):
        adapt(nn.MultiheadAttention(8, 2, kdim=4, vdim=6))


@pytest.mark.parametrize("targets", [["out_proj"], "all-linear"])
def test_out_proj_alone_would_be_ignored(targets: Any) -> None:
    with pytest.raises(
        MeloraError, match=r"layer\.out_proj: nn\.MultiheadAttention reads this layer's weight and never"
    ):
        adapt(nn.MultiheadAttention(8, 2), target_modules=targets)
