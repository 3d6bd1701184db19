"""torch.compile: one graph without breaks, forward and backward, any number of tokens."""

from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model
from torch import nn

from melora import MeloraConfig


# Dynamo itself (torch 2.13) makes an instance of every autograd.Function that it traces.
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("hooked", [False, True], ids=["fused", "second path"])
@pytest.mark.parametrize("r", [1, 2])
def test_fullgraph_gives_the_same(make_mlp: Callable[..., nn.Module], r: int, hooked: bool) -> None:
    config = MeloraConfig(r=r, n=6, target_modules=["first", "middle", "head"], init_weights=False)
    model = get_peft_model(make_mlp().double(), config)
    if hooked:
        model.base_model.model.middle.base_layer.register_forward_hook(lambda *_: None)
    torch.compiler.reset()
    # aot_eager traces forward and backward as inductor does and needs no C++ compiler.
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (5, 9):
        results = []
        for function in (model, compiled):
            model.zero_grad()
            x = torch.linspace(-1, 1, tokens * 24, dtype=torch.float64).view(tokens, 24).requires_grad_()
            y = function(x)
            y.square().sum().backward()
            results.append([y, x.grad, *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(traced, eager)
