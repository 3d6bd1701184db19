"""Starts from weights on every layer type, and what of them is refused."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from melora import MeloraConfig, MeloraError, load_adapter
from melora.analysis import inspect_adapter
from melora.conversion import export_lora

from .test_layer_types import CASES, STACK, Case, Experts, Holder, layers

EXACT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def step(model: nn.Module) -> None:
    """Moves every trained number."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_the_start_is_that_of_every_block_and_changes_nothing(case: Case, init: str) -> None:
    model = case.model(n=2, init_weights=init)
    torch.testing.assert_close(model(case.inputs()), case.base()(case.inputs()), rtol=0, atol=0)
    for layer in layers(model).values():
        A, B = (factor.start for factor in layer.mini_factors("default"))
        product = layer.product(A, B)
        if init == "pissa":
            product = product * layer.scaling["default"]
        found = layer.changed_part(layer.get_base_weight(), "default").reshape(*B.shape[:-1], -1)
        product = product.reshape(found.shape)
        for got, block in zip(product.flatten(0, -3), found.flatten(0, -3), strict=True):
            if init == "pissa":
                U, S, Vh = torch.linalg.svd(block, full_matrices=False)
                wanted = (U[:, :2] * S[:2]) @ Vh[:2]
            else:
                Q, R = torch.linalg.qr(block)
                wanted = Q[:, :2] @ R[:2]
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_trains_saves_loads_merges_and_exports(case: Case, tmp_path: Path) -> None:
    model = case.model(n=2, init_weights="pissa")
    step(model)
    x = case.inputs()
    wanted = model(x).detach()
    assert (wanted - case.base()(x)).abs().max() > 1e-2
    model.save_pretrained(tmp_path / "saved")
    for load in (PeftModel.from_pretrained, load_adapter):
        torch.testing.assert_close(load(case.base(), tmp_path / "saved").eval()(x), wanted, **EXACT)
    report = inspect_adapter(tmp_path / "saved")
    assert report.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    for reported in report.layers:
        update = model.base_model.model.get_submodule(reported.name).delta_blocks("default").detach()
        assert reported.norm == pytest.approx(float(update.norm()), rel=1e-5)
    export_lora(tmp_path / "saved", tmp_path / "lora")
    as_lora = PeftModel.from_pretrained(case.base(), tmp_path / "lora").eval()
    if not isinstance(case.base().layer, nn.MultiheadAttention):  # PEFT 0.21 applies out_proj's update twice
        torch.testing.assert_close(as_lora(x), wanted, **EXACT)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(x), wanted, **EXACT)


def test_a_convolution_whose_minis_span_groups_is_refused() -> None:
    holder = Holder(nn.Conv2d(8, 16, 3, groups=4))
    before = copy.deepcopy(holder.state_dict())
    settings: dict[str, Any] = {"n": 2, "r": 2, "target_modules": ["layer"], "init_weights": "pissa"}
    with pytest.raises(MeloraError, match=r"^layer: with n=2 a mini spans several groups .* \(groups=4\), .* n=4"):
        get_peft_model(holder, MeloraConfig(**settings))
    assert type(holder.layer) is nn.Conv2d
    fitting = get_peft_model(holder, MeloraConfig(**{**settings, "n": 4}))
    x = torch.randn(2, 8, 5, 5)
    fresh = Holder(nn.Conv2d(8, 16, 3, groups=4))
    fresh.load_state_dict(before)
    assert torch.equal(fitting(x), fresh(x))


@pytest.mark.parametrize(
    ("make", "kind"),
    [(lambda: nn.Embedding(10, 8), "Embedding"), (lambda: nn.Conv1d(8, 16, 3), "Conv1d")],
)
def test_gradients_are_for_linear_layers_alone(make: Callable[[], nn.Module], kind: str) -> None:
    config = MeloraConfig(n=2, target_modules=["layer"], init_weights="lora_ga")
    with pytest.raises(MeloraError, match=f"^layer: init_weights='lora_ga' takes .* and this is a {kind}; name it"):
        get_peft_model(Holder(make()), config)


def test_gradients_are_not_for_parameters() -> None:
    with pytest.raises(MeloraError, match=r"^layer\.up: init_weights='lora_ga' takes gradients of linear layers alone"):
        get_peft_model(Holder(Experts(False)), MeloraConfig(n=2, init_weights="lora_ga", **STACK))


def test_a_block_of_an_expert_that_is_too_small_is_refused() -> None:
    with pytest.raises(MeloraError, match=r"^layer\.up: init_weights='pissa' takes 3 .* a block is 3 x 2: .* up to 2"):
        get_peft_model(Holder(Experts(False)), MeloraConfig(n=4, r=3, init_weights="pissa", **STACK))
