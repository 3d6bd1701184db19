import pytest
import torch
from torch import nn

from melora.bench.attach import Contestant
from melora.bench.memory import peak_bytes, saved_bytes
from melora.bench.peers import choose
from melora.bench.row import Facts
from melora.bench.suites.layer import contestants

TOKENS, WIDTH = 16, 32


def test_an_activation_counts_once_and_inputs_and_weights_not_at_all() -> None:
    x = torch.randn(TOKENS, WIDTH, requires_grad=True)
    layer = nn.Linear(WIDTH, WIDTH)

    def forward() -> torch.Tensor:
        hidden = layer(x).tanh()  # kept once by tanh and once by the product
        return hidden * hidden

    assert saved_bytes(forward, [x, *layer.parameters()]) == TOKENS * WIDTH * 4


def test_melora_keeps_n_r_numbers_a_token_and_the_base_nothing() -> None:
    peers = choose([], [(4, 2)], WIDTH, WIDTH)
    x = torch.randn(TOKENS, WIDTH, requires_grad=True)

    def kept(contestant: Contestant) -> int:
        return saved_bytes(lambda: contestant.module(x), [x, *contestant.module.parameters()])

    base, melora = contestants(Facts("memory", "layer", WIDTH, WIDTH, TOKENS), peers, "cpu")
    assert kept(base) == 0
    assert kept(melora) == TOKENS * 4 * 2 * 4


@pytest.mark.parametrize(("alive", "peak"), [(1, 1), (2, 2), (5, 5)])
def test_the_peak_is_what_lives_at_once(alive: int, peak: int) -> None:
    def step() -> None:
        for _ in range(3):  # freed each time round
            tensors = [torch.empty(1 << 16, dtype=torch.uint8) for _ in range(alive)]
            del tensors

    assert peak_bytes(step, "cpu") == peak << 16
