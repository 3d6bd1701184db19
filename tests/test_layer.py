import math
from typing import Any

import pytest
import torch
from torch import nn

from melora import MeloraConfig, MeloraError
from melora.linear import Linear


def make_layer(r: int = 2, n: int = 4, d_in: int = 24, d_out: int = 32, **kwargs: Any) -> Linear:
    config = MeloraConfig(r=r, n=n, **kwargs)
    return Linear(
        nn.Linear(d_in, d_out), "default", r=r, n=n, lora_alpha=config.lora_alpha, config=config, module_name="q"
    )


def test_shapes_and_count_whatever_n_is() -> None:
    for n in (1, 2, 4, 8):
        A, B = make_layer(n=n).factors("default")
        assert A.shape == (n, 2, 24 // n)
        assert B.shape == (n, 32 // n, 2)
        assert A.is_contiguous()
        assert B.is_contiguous()
        assert A.numel() + B.numel() == 2 * (24 + 32)


def test_kaiming_over_each_minis_own_fan_in() -> None:
    torch.manual_seed(0)
    A, B = make_layer(r=64, n=4, d_in=64).factors("default")
    bound = math.sqrt(4 / 64)
    assert A.abs().max() <= bound
    assert A.abs().max() > 0.99 * bound
    assert A.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert not B.any()


def test_gaussian_init() -> None:
    torch.manual_seed(0)
    A, B = make_layer(r=16, n=4, d_in=1024, d_out=1024, init_weights="gaussian").factors("default")
    assert A.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert A.abs().max() > 3 / 16, "a uniform draw of this width ends at sqrt(3) / 16"
    assert not B.any()


def test_random_b_on_request() -> None:
    _, B = make_layer(init_weights=False).factors("default")
    assert B.all()
    assert B.abs().max() <= 1 / math.sqrt(2)


@pytest.mark.parametrize(("rslora", "expected"), [(False, 16 / 4), (True, 16 / 2)])
def test_scaling_is_by_the_rank_of_one_mini(rslora: bool, expected: float) -> None:
    layer = make_layer(r=4, use_rslora=rslora)
    assert layer.scaling["default"] == expected
    layer.set_scale("default", 2.0)
    assert layer.scaling["default"] == 2 * expected
    layer.scale_layer(3.0)
    assert layer.scaling["default"] == 6 * expected
    layer.unscale_layer(2.0)
    assert layer.scaling["default"] == 3 * expected
    layer.unscale_layer()
    assert layer.scaling["default"] == expected
    layer.set_scale("elsewhere", 2.0)
    assert set(layer.scaling) == {"default"}


def test_rank_of_the_update_is_n_times_r() -> None:
    torch.manual_seed(0)
    for n, r in ((1, 3), (4, 2), (8, 1), (2, 8)):
        delta = make_layer(r=r, n=n, init_weights=False).get_delta_weight("default").detach()
        assert torch.linalg.matrix_rank(delta) == n * r


def test_off_diagonal_blocks_are_exactly_zero() -> None:
    delta = make_layer(n=4, init_weights=False).get_delta_weight("default")
    blocks = delta.unflatten(0, (4, 8)).unflatten(2, (4, 6)).transpose(1, 2)
    for i in range(4):
        for j in range(4):
            assert bool(blocks[i, j].any()) == (i == j)


def test_a_size_that_does_not_fit_changes_nothing() -> None:
    layer = make_layer()
    with pytest.raises(MeloraError, match="q: n=5 does not divide"):
        layer.update_layer("second", 1, 5, 16.0, MeloraConfig(), "q")
    assert set(layer.scaling) == set(layer.melora_A) == set(layer.r) == {"default"}


def test_repr_says_what_it_is() -> None:
    assert "melora.Linear" in repr(make_layer())
    assert "n=4, rows=2, columns=6" in repr(make_layer())
