"""Suite "layer": forward and backward of one linear layer, and what it keeps in between."""

from collections.abc import Callable
from dataclasses import asdict

import torch

from ..memory import saved_bytes
from ..peers import Contestant, build
from ..problem import DTYPES, Problem
from ..row import Environment, Row
from ..timing import interleave


def measure(problem: Problem, repetitions: int, environment: Environment) -> tuple[list[Contestant], list[Row]]:
    """Time y = layer(x) and the gradients of x and of the adapter, contestants in turns, on one shared x.

    x is (tokens, d_in) and wants a gradient, as it does inside a network; the base's own weight does not.
    """
    torch.manual_seed(0)
    dtype = DTYPES[problem.dtype]
    contestants = build(problem)
    x = torch.randn(problem.tokens, problem.d_in, dtype=dtype, requires_grad=True)
    grad = torch.randn(problem.tokens, problem.d_out, dtype=dtype)
    timings, calls = interleave([_step(contestant, x, grad) for contestant in contestants], repetitions)
    rows = [
        Row(
            **asdict(environment),
            **asdict(problem),
            **asdict(timing),
            suite="layer",
            contestant=contestant.method,
            rank=contestant.rank,
            parameters=contestant.parameters,
            repetitions=repetitions,
            calls=calls,
            saved_bytes=saved_bytes(_forward(contestant, x), [x, *contestant.module.parameters()]),
        )
        for contestant, timing in zip(contestants, timings, strict=True)
    ]
    return contestants, rows


def _forward(contestant: Contestant, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    def forward() -> torch.Tensor:
        y: torch.Tensor = contestant.module(x)
        return y

    return forward


def _step(contestant: Contestant, x: torch.Tensor, grad: torch.Tensor) -> Callable[[], object]:
    """One forward and backward; autograd.grad, so that no gradient adds up from step to step."""
    forward, wanted = _forward(contestant, x), [x, *contestant.trainable]
    return lambda: torch.autograd.grad(forward(), wanted, grad)
