"""Orders of channels from the correlation of activations."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn

from melora import MeloraConfig, MeloraError, calibrate
from melora.calibration import TOKENS, correlation, gathered

from .test_layer_types import Holder, layers


def grouped(tokens: int, groups: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of groups * width channels, alike in a group but for noise and sign, shuffled; and their groups."""
    signal = torch.randn(tokens, groups, 1, dtype=torch.float64)
    signs = torch.randint(0, 2, (groups, width)) * 2 - 1
    values = (signal * signs + 0.3 * torch.randn(tokens, groups, width, dtype=torch.float64)).flatten(1)
    order = torch.randperm(groups * width)
    return values[:, order], order // width


@settings(max_examples=20, deadline=None)
@given(groups=st.integers(1, 4), width=st.integers(2, 8), seed=st.integers(0, 99))
def test_correlated_channels_come_to_one_mini(groups: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    values, group = grouped(2000, groups, width)
    order = gathered(correlation(values), groups)
    assert order.sort().values.tolist() == list(range(groups * width))
    for run in group[order].view(groups, width):
        assert len(run.unique()) == 1


@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(2, 30), width=st.integers(1, 8), seed=st.integers(0, 99))
def test_correlation_is_numpy_s(tokens: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    values = torch.randn(tokens, width, dtype=torch.float64)
    expected = torch.corrcoef(values.T).abs().reshape(width, width)
    torch.testing.assert_close(correlation(values), expected, rtol=1e-9, atol=1e-9)


def test_a_constant_channel_correlates_with_none() -> None:
    values = torch.randn(50, 3, dtype=torch.float64)
    values[:, 1] = 7.0
    assert not correlation(values)[1].any()
    assert sorted(gathered(correlation(values), 3).tolist()) == [0, 1, 2]


def model_of(make_mlp: Callable[..., nn.Module], **kwargs: Any) -> Any:
    config = {"n": 2, "permute": "correlation", "target_modules": ["first", "middle"], **kwargs}
    return get_peft_model(make_mlp(), MeloraConfig(**config))


def test_every_layer_gets_its_order_and_nothing_else_changes(make_mlp: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = model_of(make_mlp), torch.randn(64, 24)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items() if "melora_P" not in k}
    assert calibrate(model, [{"x": x[:40]}, {"x": x[40:]}]) == 2
    assert model.training
    assert all(module.training for module in model.modules())
    after = model.state_dict()
    for key, value in before.items():
        assert torch.equal(after[key], value)
    first, middle = layers(model).values()
    base = make_mlp()
    hidden = torch.relu(base.first(x))
    for layer, inputs in ((first, x), (middle, hidden)):
        outputs = layer.get_base_layer()(inputs)
        of_in, of_out = layer.order("default").long().split([layer.in_features, layer.out_features])  # type: ignore[union-attr]
        assert of_in.tolist() == gathered(correlation(inputs.detach().double()), 2).tolist()
        assert of_out.tolist() == gathered(correlation(outputs.detach().double()), 2).tolist()
    torch.testing.assert_close(model(x), base(x))
    assert not first.get_base_layer()._forward_hooks


def test_only_so_many_tokens_are_kept(make_mlp: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2 * TOKENS, 24)
    orders = []
    for batches in ([{"x": x}], [{"x": x[:TOKENS]}]):
        model = model_of(make_mlp)
        calibrate(model, batches)
        orders.append(next(iter(layers(model).values())).order("default"))
    assert torch.equal(*orders)


def test_an_adapter_beside_others_and_its_own_way_of_running(make_mlp: Callable[..., nn.Module]) -> None:
    model = get_peft_model(make_mlp(), MeloraConfig(n=2, init_weights=False, target_modules=["first"]))
    model.add_adapter("second", MeloraConfig(n=2, permute="correlation", target_modules=["first"]))
    x = torch.randn(9, 24)
    expected = model(x)
    assert calibrate(model, [{"rows": x}], "second", forward=lambda batch: model(batch["rows"])) == 1
    torch.testing.assert_close(model(x), expected)


def state(model: nn.Module) -> dict[str, Any]:
    """All that calibrating might leave changed."""
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    active = {name: (layer.active_adapter, layer.disable_adapters) for name, layer in layers(model).items()}
    return {"requires_grad": trained, "active": active, "training": [module.training for module in model.modules()]}


@pytest.mark.parametrize("trained", ["none", "default", "second", "both"])
@pytest.mark.parametrize("x", [torch.linspace(-1, 1, 5 * 24).sin().view(5, 24), torch.full((3, 24), float("nan"))])
def test_what_is_trained_and_active_stays(trained: str, x: torch.Tensor, make_mlp: Callable[..., nn.Module]) -> None:
    model = model_of(make_mlp)
    model.add_adapter("second", MeloraConfig(n=2, mixing="learned", target_modules=["first"]))
    model.base_model.set_adapter(["default", "second"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("melora_" in name and trained != "none" and (trained == "both" or trained in name))
    layers(model)["base_model.model.first"].enable_adapters(False)
    before = state(model)
    if x.isfinite().all():
        calibrate(model, [{"x": x}])
    else:
        with pytest.raises(MeloraError, match="not finite"):
            calibrate(model, [{"x": x}])
    assert state(model) == before


def test_beside_a_merged_adapter_it_is_refused(make_mlp: Callable[..., nn.Module]) -> None:
    """Disabling an adapter takes merged ones out of the weight, up to rounding, and quantises it anew if it was."""
    model = get_peft_model(make_mlp(), MeloraConfig(n=2, init_weights=False, target_modules=["first", "head"]))
    model.add_adapter("second", MeloraConfig(n=2, permute="correlation", target_modules=["middle", "head"]))
    for merged in ("first", "head"):
        layers(model)[f"base_model.model.{merged}"].merge()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(
            MeloraError, match=rf"model\.{merged}: adapter 'default' is merged .*: call unmerge_adapter\(\) first"
        ):
            calibrate(model, [{"x": torch.randn(9, 24)}], "second")
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert layers(model)[f"base_model.model.{merged}"].merged_adapters == ["default"]
        layers(model)[f"base_model.model.{merged}"].unmerge()
    assert calibrate(model, [{"x": torch.randn(9, 24)}], "second") == 2


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_passed_over(side: str, tiny_llama: nn.Module) -> None:
    ids = torch.randint(1, 50, (4, 7), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[:2, slice(4, None) if side == "right" else slice(3)] = 0
    config = MeloraConfig(n=4, permute="correlation", target_modules=["q_proj", "down_proj"])
    found = []
    for padding in (0, 17):
        model = get_peft_model(copy.deepcopy(tiny_llama), config)
        calibrate(model, [{"input_ids": ids.where(mask.bool(), padding), "attention_mask": mask}])
        found.append([layer.order("default") for layer in layers(model).values()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_only_tokens_that_are_not_padding_are_counted(make_mlp: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(2, 5, 24), torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    kept, run = x[mask.bool()], {"forward": lambda batch: model(batch["x"])}
    found = []
    for batch in ({"x": x, "attention_mask": mask}, {"x": kept}, {"x": kept, "attention_mask": mask}):
        model = model_of(make_mlp)
        calibrate(model, [batch], **run)
        found.append(layers(model)["base_model.model.first"].order("default"))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])  # a mask of another shape than the values' says nothing of them
    model = model_of(make_mlp)
    with pytest.raises(MeloraError, match="first: saw 0 tokens"):
        calibrate(model, [{"x": x, "attention_mask": 0 * mask}], **run)


def test_what_can_t_be_calibrated_is_refused_and_changes_nothing(make_mlp: Callable[..., nn.Module]) -> None:
    with pytest.raises(MeloraError, match="adapter 'default': no layer has permute='correlation'"):
        calibrate(model_of(make_mlp, permute="strided"), [{"x": torch.ones(3, 24)}])
    model = model_of(make_mlp)
    for batches, match in (
        ([], "first: saw 0 tokens"),
        ([{"x": torch.ones(1, 24)}], "first: saw 1 tokens, and a correlation takes two"),
        ([{"x": torch.full((3, 24), float("nan"))}], "first: a value on the batches is not finite"),
    ):
        with pytest.raises(MeloraError, match=match):
            calibrate(model, batches)
        assert not any(layer.is_ordered("default") for layer in layers(model).values())
        assert not any(layer.disable_adapters for layer in layers(model).values())
    calibrate(model, [{"x": torch.randn(30, 24)}])
    with pytest.raises(MeloraError, match="first: adapter 'default' has its order already"):
        calibrate(model, [{"x": torch.randn(30, 24)}])


def test_conv1d_keeps_its_layout() -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    model = get_peft_model(Holder(Conv1D(8, 12)), MeloraConfig(n=2, permute="correlation", target_modules=["layer"]))
    calibrate(model, [{"x": torch.randn(5, 7, 12)}])
    assert model(torch.randn(2, 12)).shape == (2, 8)
