"""peft.optimizers.create_loraplus_optimizer, for those who train with PEFT alone."""

from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn

from melora import MeloraConfig


@pytest.mark.parametrize("ratio", [16.0, 0.125])
def test_pefts_loraplus_optimizer_knows_a_from_b(make_mlp: Callable[..., nn.Module], ratio: float) -> None:
    model = get_peft_model(make_mlp(), MeloraConfig(n=6, target_modules=["first", "middle"], modules_to_save=["head"]))
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=ratio)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, rate in rates.items():
        if "melora_" in name:
            assert rate == pytest.approx(1e-3 * ratio if "melora_B" in name else 1e-3)
    model(torch.randn(8, 24)).square().sum().backward()
    optimizer.step()
    A, B = model.base_model.model.first.factors("default")
    assert B.detach().abs().median() == pytest.approx(1e-3 * ratio, rel=1e-3)  # Adam's first step from zero
    assert A.grad is not None
    assert not A.grad.any()


def test_an_embeddings_factors_get_the_rate_of_a() -> None:
    model = get_peft_model(
        nn.Sequential(nn.Embedding(20, 12), nn.Linear(12, 6)), MeloraConfig(n=6, target_modules=["0", "1"])
    )
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rate for name, rate in rates.items() if "embedding" in name} == {1e-3}
