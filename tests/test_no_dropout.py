"""Nothing is dropped while gradients are taken, by a module that draws its own dropout either."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from melora.gradients import weight_gradients
from melora.no_dropout import no_dropout

from .conftest import small_bart, small_t5

IDS = torch.randint(3, 50, (4, 7), generator=torch.Generator().manual_seed(0))
BATCHES = [{"input_ids": IDS, "labels": IDS}]


def tiny_bart(**rates: float) -> Any:
    torch.manual_seed(0)
    return small_bart(use_cache=False, **{"dropout": 0.0, **rates}).double().train()


def tiny_t5(attention: str) -> Any:
    torch.manual_seed(0)
    return small_t5(dropout_rate=0.4, use_cache=False, attn_implementation=attention).double().train()


MODELS = {
    "dropout in the layers": lambda: tiny_bart(dropout=0.3, activation_dropout=0.2),
    "layers left out": lambda: tiny_bart(encoder_layerdrop=0.6, decoder_layerdrop=0.6),
    "within fused attention": lambda: tiny_t5("sdpa"),
    "within eager attention": lambda: tiny_t5("eager"),
}


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_checkpointing_changes_no_gradient(kind: str, use_reentrant: bool) -> None:
    make = MODELS[kind]
    model = make()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and "lm_head" not in name]
    plain = weight_gradients(model.eval(), names, BATCHES)
    model = make()
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    before = [{key: value for key, value in vars(m).items() if "drop" in key} for m in model.modules()]
    config = model.config.to_dict()
    for seed in (0, 1):
        got = weight_gradients(model, names, BATCHES, seed=seed)
        torch.testing.assert_close(got, plain, rtol=1e-10, atol=1e-14)
    assert [{key: value for key, value in vars(m).items() if "drop" in key} for m in model.modules()] == before
    assert model.config.to_dict() == config


class Own(nn.Module):
    """Draws every kind of dropout itself, by the arguments' defaults and by name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.gradient_checkpointing = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = checkpoint(self._inner, x, use_reentrant=False)
        return y

    def _inner(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = F.dropout(self.linear(x), 0.5, self.training)
        for drop in (F.alpha_dropout, F.feature_alpha_dropout):
            y = drop(y, p=0.5, training=self.training)
        y = F.dropout1d(torch.nn.functional.dropout(input=y, inplace=True))
        return F.dropout3d(F.dropout2d(y[..., None])[..., None]).flatten(-3)


def test_of_every_kind_and_only_within() -> None:
    torch.manual_seed(0)
    model, x = Own(), torch.randn(5, 3, 8)
    kept = {name: getattr(F, name) for name in dir(F) if "dropout" in name}
    got = weight_gradients(model, ["linear"], [x], loss=lambda model, x: model(x).square().mean())
    free = model.linear.weight.detach().clone().requires_grad_()
    F.linear(x, free, model.linear.bias).square().mean().backward()
    torch.testing.assert_close(got["linear"], free.grad)
    with pytest.raises(KeyError), no_dropout(model):
        raise KeyError
    assert {name: getattr(F, name) for name in kept} == kept
    assert (F.dropout(torch.ones(1000)) == 0).any()
