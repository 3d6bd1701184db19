"""Tensors for the operation, and the checks that every form of it goes through against the loop."""

import math
from typing import Any

import torch
from torch.autograd import gradcheck, gradgradcheck

from melora.ops import block_lora, block_lora_reference

Tensors = dict[str, Any]
NAMES = ("x", "weight", "bias", "A", "B", "core")


def make(
    n: int = 4,
    r: int = 2,
    block_in: int = 3,
    block_out: int = 5,
    leading: tuple[int, ...] = (7,),
    dtype: torch.dtype = torch.float64,
    base: bool = True,
    core: bool = False,
) -> Tensors:
    d_in, d_out = n * block_in, n * block_out
    tensors: Tensors = {
        "x": torch.randn(*leading, d_in, dtype=dtype),
        "weight": torch.randn(d_out, d_in, dtype=dtype) / d_in**0.5 if base else None,
        "bias": torch.randn(d_out, dtype=dtype) if base else None,
        "A": torch.randn(n, r, block_in, dtype=dtype) / block_in**0.5,
        "B": torch.randn(n, block_out, r, dtype=dtype) / r**0.5,
        "core": torch.randn(r, n, n, dtype=dtype) if core else None,
    }
    return {key: None if value is None else value.requires_grad_() for key, value in tensors.items()}


def leaves(t: Tensors) -> dict[str, torch.Tensor]:
    """The tensors that are there, in the order of NAMES."""
    return {name: t[name] for name in NAMES if t[name] is not None}


def copied(t: Tensors, dtype: torch.dtype) -> Tensors:
    return {k: None if v is None else v.detach().to(dtype).requires_grad_() for k, v in t.items()}


def call(function: Any, t: Tensors, scaling: float = 0.7, **kwargs: Any) -> torch.Tensor:
    rest = {"weight": t["weight"], "bias": t["bias"], "core": t["core"], **kwargs}
    y: torch.Tensor = function(t["x"], t["A"], t["B"], scaling, **rest)
    return y


def output_and_gradients(function: Any, t: Tensors, grad: torch.Tensor, **kwargs: Any) -> list[torch.Tensor]:
    y = call(function, t, **kwargs)
    return [y, *torch.autograd.grad(y, list(leaves(t).values()), grad)]


def check_gradients(t: Tensors, **kwargs: Any) -> None:
    """First and second derivatives by differences; with dropout under one mask."""

    def f(*values: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)  # the same mask in every evaluation
        return call(block_lora, {**t, **dict(zip(leaves(t), values, strict=True))}, **kwargs)

    assert gradcheck(f, list(leaves(t).values()))
    assert gradgradcheck(f, list(leaves(t).values()))


def check_wanted(t: Tensors, needs: tuple[bool, ...], **kwargs: Any) -> None:
    """Only the gradients of the tensors that `needs` says, in the order of `leaves`, are asked for, and right."""
    names = list(leaves(t))
    grad = torch.randn(call(block_lora_reference, t, **kwargs).shape, dtype=torch.float64)
    every = dict(zip(names, output_and_gradients(block_lora_reference, t, grad, **kwargs)[1:], strict=True))
    for name, need in zip(names, needs, strict=True):
        t[name] = t[name].detach().requires_grad_(need)
    y = call(block_lora, t, **kwargs)
    assert y.requires_grad == any(needs)
    wanted = [name for name, need in zip(names, needs, strict=True) if need]
    if wanted:
        for name, value in zip(wanted, torch.autograd.grad(y, [t[name] for name in wanted], grad), strict=True):
            torch.testing.assert_close(value, every[name], msg=lambda text, name=name: f"{name}: {text}")


def check_equal(t: Tensors, grad: torch.Tensor, **kwargs: Any) -> None:
    """Output and every gradient in fp64, and the output without gradients."""
    expected = output_and_gradients(block_lora_reference, t, grad, **kwargs)
    for got, want in zip(output_and_gradients(block_lora, t, grad, **kwargs), expected, strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(call(block_lora, t, **kwargs), expected[0], rtol=1e-10, atol=1e-10)


def check_precision(low: Tensors, **kwargs: Any) -> None:
    """Error to the fp32 (for fp32: fp64) oracle at most twice that of the plain loop in this dtype, plus 1e-6.

    Of the output, every gradient, and the output without gradients.

    The error is the root mean square over a tensor and over eight draws of such tensors: the largest of a few elements
    is luck, and differs between processors by more than a factor of two.
    """
    dtype = low["x"].dtype
    exact = torch.float64 if dtype == torch.float32 else torch.float32
    squares: dict[int, list[tuple[float, float]]] = {}
    for _ in range(8):
        low = {key: value if value is None else _like(value) for key, value in low.items()}
        high = copied(low, exact)
        grad = torch.randn(call(block_lora_reference, low, **kwargs).shape, dtype=dtype)
        oracle = output_and_gradients(block_lora_reference, high, grad.to(exact), **kwargs)
        plain = output_and_gradients(block_lora_reference, low, grad, **kwargs)
        got = output_and_gradients(block_lora, low, grad, **kwargs)
        with torch.no_grad():  # which takes other ways for a few tokens
            alone = call(block_lora, low, **kwargs)
        every = zip([*oracle, oracle[0]], [*plain, plain[0]], [*got, alone], strict=True)
        for index, (want, allowed, value) in enumerate(every):
            assert value.dtype == dtype
            own, loop = ((found.to(exact) - want).square().mean().item() for found in (value, allowed))
            squares.setdefault(index, []).append((own, loop))
    for index, pairs in squares.items():
        error, plain_error = (math.sqrt(sum(values) / len(pairs)) for values in zip(*pairs, strict=True))
        assert error <= 2 * plain_error + 1e-6, (index, error, plain_error)


def _like(value: torch.Tensor) -> torch.Tensor:
    scale = value.detach().float().square().mean().sqrt().to(value.dtype)
    return (torch.randn_like(value) * scale).detach().requires_grad_()
