"""Which bases take the fused path, and that the other path gives the same."""

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from melora import MeloraConfig
from melora.fusion import dense_weight, is_fresh


class Odd(nn.Linear):
    """A subclass may compute anything."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


X = torch.randn(2, 4)


def test_plain_layers_give_their_weight_as_out_by_in() -> None:
    linear, conv = nn.Linear(4, 6), Conv1D(6, 4)
    assert dense_weight(linear, X) is linear.weight
    weight = dense_weight(conv, X)
    assert weight is not None
    assert torch.equal(weight, conv.weight.T)


def _with_replaced_forward() -> nn.Module:
    base: Any = nn.Linear(4, 6)
    base.forward = lambda x: x
    return base


def _with_hook(register: str, hook: Any) -> nn.Module:
    base = nn.Linear(4, 6)
    getattr(base, register)(hook)
    return base


@pytest.mark.parametrize(
    "base",
    [
        Odd(4, 6),
        nn.Identity(),
        _with_replaced_forward(),
        _with_hook("register_forward_hook", lambda *_: None),
        _with_hook("register_forward_pre_hook", lambda *_: None),
        _with_hook("register_full_backward_hook", lambda *_: None),
        torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)),
    ],
)
def test_anything_else_takes_the_second_path(base: nn.Module) -> None:
    assert dense_weight(base, X) is None


def test_tensor_subclasses_take_the_second_path() -> None:
    class Special(torch.Tensor):
        pass

    assert dense_weight(nn.Linear(4, 6), X.as_subclass(Special)) is None


def test_global_hooks_take_the_second_path() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert dense_weight(nn.Linear(4, 6), X) is None
    finally:
        handle.remove()


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_both_paths_agree_and_hooks_see_the_bases_own_output(dropout: float) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(24, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.layer(x)
            return y

    config = MeloraConfig(r=2, n=4, init_weights=False, target_modules=["layer"], lora_dropout=dropout)
    model = get_peft_model(Holder().double(), config)
    layer = model.base_model.model.layer
    results, seen = [], []
    for hooked in (False, True):
        if hooked:
            layer.base_layer.register_forward_hook(lambda _module, _args, output: seen.append(output.clone()))
        model.zero_grad()
        x = torch.linspace(-1, 1, 5 * 24).double().view(5, 24).requires_grad_()
        torch.manual_seed(0)
        y = model(x)
        y.square().sum().backward()
        results.append([y, x.grad, *(factor.grad.clone() for factor in layer.factors("default"))])
    for fused, separate in zip(*results, strict=True):
        torch.testing.assert_close(fused, separate, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen[0], torch.nn.functional.linear(x, layer.base_layer.weight, layer.base_layer.bias))


@pytest.mark.parametrize(
    ("base", "fresh"),
    [
        (nn.Linear(4, 6), True),
        (Conv1D(6, 4), True),
        (Odd(4, 6), False),
        (nn.Identity(), False),
        (_with_replaced_forward(), False),
        (_with_hook("register_forward_hook", lambda *_: None), False),
        (_with_hook("register_forward_pre_hook", lambda *_: None), False),
    ],
)
def test_only_known_and_unwatched_bases_answer_with_what_may_be_overwritten(base: nn.Module, fresh: bool) -> None:
    assert is_fresh(base, base(X)) is fresh


def test_a_hooks_own_output_is_neither_overwritten_nor_lost_for_its_gradient() -> None:
    """tanh's gradient comes from its output: added to in place, it would fail in the backward pass."""
    seen: list[torch.Tensor] = []

    def squash(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(output.tanh())
        return seen[-1]

    config = MeloraConfig(r=1, n=2, init_weights=False, target_modules=["0"])
    model = get_peft_model(nn.Sequential(nn.Linear(4, 6)), config).double()
    layer: Any = model.base_model.model[0]
    layer.base_layer.register_forward_hook(squash)
    x = X.double().requires_grad_()
    y = model(x)
    squashed = torch.tanh(torch.nn.functional.linear(x, layer.base_layer.weight, layer.base_layer.bias))
    torch.testing.assert_close(seen[0], squashed)
    torch.testing.assert_close(y, squashed + layer.adapter_output("default", x))
    y.sum().backward()
