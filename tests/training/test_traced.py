from typing import Any

import pytest
import torch
from torch import nn

from melora.training.traced import trace_peak

ROWS, WIDTH = 64, 32
BATCH = {"x": torch.zeros(ROWS, WIDTH)}
TENSOR = ROWS * WIDTH * 4


def loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(batch["x"]).sum()  # type: ignore[no-any-return]


def test_a_chain_of_layers_keeps_each_input_that_its_backward_needs() -> None:
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Tanh() for _ in range(6)))
    leaf = nn.Parameter(torch.zeros(1, device="meta"))
    model.register_parameter("leaf", leaf)
    peak = trace_peak(model, BATCH, lambda m, b: m(b["x"] * m.leaf).sum(), "cpu")
    # tanh keeps its output, not its input: six outputs, and the gradient that flows; the rest are two scalars.
    assert 7 * TENSOR <= peak < 7 * TENSOR + 100


def test_an_evaluation_keeps_only_what_is_in_use() -> None:
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Tanh() for _ in range(6)))

    def evaluate(model: Any, batch: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            loss(model, batch)

    assert trace_peak(model, BATCH, evaluate, "cpu") == 2 * TENSOR


def test_the_model_stays_as_it_is() -> None:
    with torch.device("meta"):
        model = nn.Linear(WIDTH, WIDTH)
    before = dict(model.named_parameters())
    trace_peak(model, BATCH, loss, "cpu")
    assert all(before[name] is value and value.grad is None for name, value in model.named_parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_not_counted(tied: bool) -> None:
    with torch.device("meta"):
        first, second = nn.Linear(WIDTH, 4096), nn.Linear(WIDTH, 4096)
    if tied:
        second.weight = first.weight
    model = nn.Module()
    model.first, model.second = first, second
    peak = trace_peak(model.requires_grad_(False), {"x": torch.zeros(1, WIDTH)}, lambda m, b: None, "cpu")
    assert peak == 0
