import torch
from torch import nn

from melora.bench.memory import saved_bytes
from melora.bench.peers import build
from melora.bench.problem import Problem

TOKENS, WIDTH = 16, 32


def test_an_activation_counts_once_and_inputs_and_weights_not_at_all() -> None:
    x = torch.randn(TOKENS, WIDTH, requires_grad=True)
    layer = nn.Linear(WIDTH, WIDTH)

    def forward() -> torch.Tensor:
        hidden = layer(x).tanh()  # kept once by tanh and once by the product
        return hidden * hidden

    assert saved_bytes(forward, [x, *layer.parameters()]) == TOKENS * WIDTH * 4


def test_melora_keeps_n_r_numbers_a_token_and_the_base_nothing() -> None:
    problem = Problem(d_in=WIDTH, d_out=WIDTH, tokens=TOKENS, n=4, r=2, dtype="float32", dropout=0.0)
    x = torch.randn(TOKENS, WIDTH, requires_grad=True)
    base, *_, melora = build(problem)
    assert saved_bytes(lambda: base.module(x), [x, *base.module.parameters()]) == 0
    assert saved_bytes(lambda: melora.module(x), [x, *melora.module.parameters()]) == TOKENS * 4 * 2 * 4
