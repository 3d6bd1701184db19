"""What is special about convolutions: groups of the base, dilation, padding modes, inputs without a batch."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from melora import MeloraConfig, MeloraError
from melora.conversion import export_lora


class Holder(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        return y


def adapt(base: nn.Module, **kwargs: Any) -> Any:
    settings_ = {"r": 2, "n": 4, "init_weights": False, "target_modules": ["layer"], "lora_alpha": 2, **kwargs}
    return get_peft_model(Holder(base.double()), MeloraConfig(**settings_)).eval()


def oracle(base: nn.Conv2d, x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, scaling: float) -> torch.Tensor:
    """Mini by mini: convolve a slice of the channels with A_i, multiply by B_i, put the outputs side by side."""
    n = A.shape[0]
    outputs = []
    for x_i, A_i, B_i in zip(x.chunk(n, dim=1), A, B, strict=True):
        u = F.conv2d(x_i, A_i, None, base.stride, base.padding, base.dilation)
        outputs.append(torch.einsum("or,brhw->bohw", B_i, u))
    return base(x) + scaling * torch.cat(outputs, dim=1)


@settings(max_examples=30, deadline=None)
@given(
    n=st.sampled_from([1, 2, 4]),
    r=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
)
def test_any_convolution_whose_groups_divide_n(
    n: int, r: int, kernel: tuple[int, int], stride: int, padding: int, dilation: int, groups: int, bias: bool
) -> None:
    base = nn.Conv2d(8, 12, kernel, stride, padding, dilation, groups=min(groups, n), bias=bias)
    model = adapt(base, n=n, r=r)
    x = torch.randn(2, 8, 6, 7).double()
    layer = model.base_model.model.layer
    expected = oracle(base, x, *layer.factors("default"), layer.scaling["default"])
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model(x[0]), expected[0])
    torch.testing.assert_close(model.merge_and_unload()(x), expected)


@pytest.mark.parametrize("padding_mode", ["reflect", "circular", "replicate"])
@pytest.mark.parametrize("padding", [1, "same"])
def test_padding_modes(padding_mode: Any, padding: Any) -> None:
    """The adapter must see the borders that the base sees: merged and unmerged agree. (LoRA pads with zeros.)"""
    model = adapt(nn.Conv2d(8, 12, 3, padding=padding, padding_mode=padding_mode))
    x = torch.randn(2, 8, 6, 7).double()
    expected = model(x)
    torch.testing.assert_close(model.merge_and_unload()(x), expected)


@pytest.mark.parametrize(("n", "groups", "r"), [(1, 2, 2), (1, 4, 4), (2, 4, 2), (2, 8, 4)])
def test_minis_that_span_groups_are_loras_of_their_groups(n: int, groups: int, r: int, tmp_path: Any) -> None:
    base = nn.Conv2d(8, 16, 3, groups=groups)
    with pytest.warns(
        UserWarning, match=rf"layer: an adapter with n={n} on a convolution with groups={groups} can't be"
    ):
        model = adapt(base, n=n, r=r)
    x = torch.randn(2, 8, 6, 7).double()
    layer = model.base_model.model.layer
    A, B = layer.factors("default")
    assert B.shape == (n, 16 // n, r * n // groups)
    outputs = []
    for x_i, A_i, B_i in zip(x.chunk(n, dim=1), A, B, strict=True):
        outputs.append(F.conv2d(F.conv2d(x_i, A_i), B_i[:, :, None, None], groups=groups // n))
    expected = base(x) + layer.scaling["default"] * torch.cat(outputs, dim=1)
    torch.testing.assert_close(model(x), expected)

    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(MeloraError, match=rf"layer: MELoRA with n={n} mixes the groups .* train with n={groups}"):
            merge()
    torch.testing.assert_close(model(x), expected)

    model.float().save_pretrained(tmp_path / "melora")
    export_lora(tmp_path / "melora", tmp_path / "lora")
    with pytest.warns(UserWarning, match="groups > 1"):
        lora = PeftModel.from_pretrained(Holder(base.float()), tmp_path / "lora").eval()
    torch.testing.assert_close(lora(x.float()).double(), expected, rtol=1e-4, atol=1e-4)


def test_n_1_on_groups_is_pefts_lora() -> None:
    base = nn.Conv2d(8, 16, 3, groups=2)
    with pytest.warns(UserWarning, match="can't be merged"):
        ours = adapt(base, n=1)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["layer"], init_lora_weights=False)
    with pytest.warns(UserWarning, match="groups > 1"):
        theirs = get_peft_model(Holder(nn.Conv2d(8, 16, 3, groups=2).double()), config)
    lora, layer = theirs.base_model.model.layer, ours.base_model.model.layer
    lora.base_layer.load_state_dict(base.state_dict())
    A, B = layer.factors("default")
    lora.lora_A["default"].weight.data = A.data[0].clone()
    lora.lora_B["default"].weight.data = B.data[0, :, :, None, None].clone()
    x = torch.randn(2, 8, 6, 7).double()
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("n", [2, 4])
def test_export_of_groups_that_divide_n_needs_to_know_them(n: int, tmp_path: Any) -> None:
    base = nn.Conv2d(8, 16, 3, groups=2)
    model = adapt(base, n=n).float()
    model.save_pretrained(tmp_path / "melora")
    x = torch.randn(2, 8, 6, 7)
    expected = model(x)
    export_lora(tmp_path / "melora", tmp_path / "lora", groups={"layer": 2})
    with pytest.warns(UserWarning, match="groups > 1"):
        lora = PeftModel.from_pretrained(Holder(base), tmp_path / "lora").eval()
    torch.testing.assert_close(lora(x), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(MeloraError, match=rf"layer: groups=3 can't be the convolution's: n={n} .* a divisor of {n}"):
        export_lora(tmp_path / "melora", tmp_path / "other", groups={"layer": 3})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"n": 2, "r": 2},
            r"layer: n=2 and the convolution's groups=3 must divide one another; choose n=3, a multiple",
        ),
        ({"n": 1, "r": 2}, r"layer: with groups=3 and n=1 each mini spans 3 groups, so r=2 must be divisible by 3"),
        ({"n": 9, "r": 2}, r"layer: n=9 does not divide both d_in=12 and d_out=24; choose n from 1, 2, 3, 4, 6, 12"),
    ],
)
def test_groups_that_do_not_fit(kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(MeloraError, match=message):
        adapt(nn.Conv2d(12, 24, 3, groups=3), **kwargs)


def test_dropout() -> None:
    model = adapt(nn.Conv1d(8, 16, 3), lora_dropout=0.5).train()
    x = torch.randn(2, 8, 10).double()
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
