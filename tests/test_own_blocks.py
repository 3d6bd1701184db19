"""The minis' own blocks as factors, against the dense update."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

from melora import MeloraConfig, MeloraError
from melora.linear import Linear
from melora.own_blocks import own_factors, own_inputs


def moved(make_mlp: Callable[..., nn.Module], **options: Any) -> Linear:
    torch.manual_seed(0)
    model = get_peft_model(make_mlp(), MeloraConfig(**{"r": 2, "n": 4, "target_modules": ["first"], **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    layer = model.base_model.model.first
    assert isinstance(layer, Linear)
    return layer


@pytest.mark.parametrize(
    ("options", "k"),
    [
        ({}, 2),
        ({"mixing": "learned"}, 2),
        ({"mixing": "shuffle", "r": 12}, 3),
        ({"init_weights": "pissa"}, 4),
        ({"init_weights": "olora", "r": 5}, 6),  # of 2 r = 10 rows in 6 channels
    ],
)
def test_they_make_up_the_diagonal_of_the_update(
    options: dict[str, Any], k: int, make_mlp: Callable[..., nn.Module]
) -> None:
    layer = moved(make_mlp, **options)
    A, B = own_factors(layer, "default")
    assert (A.shape, B.shape) == ((4, k, 6), (4, 12, k))
    delta = layer.get_delta_weight("default") / layer.scaling["default"]
    blocks = torch.stack([delta[12 * i : 12 * i + 12, 6 * i : 6 * i + 6] for i in range(4)])
    torch.testing.assert_close(B @ A, blocks, rtol=1e-4, atol=1e-5)
    if "init_weights" in options:
        torch.testing.assert_close(A @ A.mT, torch.eye(k).expand(4, k, k), rtol=1e-4, atol=1e-5)


def test_factors_of_16_bits_are_widened(make_mlp: Callable[..., nn.Module]) -> None:
    layer = moved(make_mlp).bfloat16()
    assert {factor.dtype for factor in own_factors(layer, "default")} == {torch.float32}


def test_they_read_their_own_channels(make_mlp: Callable[..., nn.Module]) -> None:
    x = torch.arange(24.0).repeat(3, 1)
    torch.testing.assert_close(own_inputs(moved(make_mlp), "default", x)[1], torch.arange(24.0).view(4, 6))
    strided = own_inputs(moved(make_mlp, permute="strided"), "default", x)
    torch.testing.assert_close(strided[2], torch.arange(24.0).view(6, 4).T)
    layer = moved(make_mlp, permute="correlation")
    with pytest.raises(MeloraError, match="needs an order of the channels"):
        own_inputs(layer, "default", x)
    layer.set_order("default", torch.cat([torch.arange(24).flip(0), torch.arange(48)]))
    torch.testing.assert_close(own_inputs(layer, "default", x)[0], (23 - torch.arange(24.0)).view(4, 6))
