"""The adapter added to a base's output: gradients, in place and not, and what must not be overwritten."""

from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from melora.ops import add_block_lora, block_lora_reference


def make(r: int, dtype: torch.dtype = torch.float64, rows: int = 3, width: int = 1) -> list[torch.Tensor]:
    """out, x, A, B."""
    shapes = [(rows, 6 * width), (rows, 4 * width), (2, r, 2 * width), (2, 3 * width, r)]
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in shapes]


def in_place(out: torch.Tensor, *others: Any, **kwargs: Any) -> torch.Tensor:
    return add_block_lora(out * 1.0, *others, 0.7, in_place=True, **kwargs)  # a fresh tensor, as a base answers


def out_of_place(*tensors: Any, **kwargs: Any) -> torch.Tensor:
    return add_block_lora(*tensors, 0.7, **kwargs)


@pytest.mark.parametrize("function", [in_place, out_of_place])
@pytest.mark.parametrize("r", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_values_and_gradients(function: Any, r: int, dropout: float) -> None:
    tensors = make(r)
    out, x, A, B = tensors
    torch.testing.assert_close(function(*tensors), out + block_lora_reference(x, A, B, 0.7))
    with torch.no_grad():
        torch.testing.assert_close(function(*tensors), out + block_lora_reference(x, A, B, 0.7))

    def seeded(*values: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return function(*values, dropout=dropout)

    assert gradcheck(seeded, tensors)
    assert gradgradcheck(seeded, tensors)


@pytest.mark.parametrize("grad", [True, False])
def test_in_place_writes_into_out_and_makes_nothing_of_its_size(grad: bool) -> None:
    _, x, A, B = make(1)
    out = torch.zeros(3, 6, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        assert add_block_lora(out, x, A, B, 0.7, in_place=True).data_ptr() == out.data_ptr()
        before = out.detach().clone()
        assert add_block_lora(out, x, A, B, 0.7).data_ptr() != out.data_ptr()
    assert torch.equal(out.detach(), before)


@pytest.mark.parametrize("grad", [True, False])
def test_views_and_strided_outputs_are_left_alone(grad: bool) -> None:
    _, x, A, B = make(1)
    for whole, part in ((torch.zeros(4, 6), slice(0, 3)), (torch.zeros(3, 12), (slice(None), slice(0, 12, 2)))):
        out = whole.double()[part]
        with torch.set_grad_enabled(grad):
            y = add_block_lora(out, x, A, B, 0.7, in_place=True)
        torch.testing.assert_close(y, block_lora_reference(x, A, B, 0.7))
        assert not out.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("r", [1, 4])
def test_low_precision_is_as_good_as_plain_pytorch(dtype: torch.dtype, r: int) -> None:
    torch.manual_seed(0)
    low = make(r, dtype, rows=64, width=16)
    exact = torch.float64 if dtype == torch.float32 else torch.float32
    high = [t.detach().to(exact).requires_grad_() for t in low]
    grad = torch.randn(64, 96, dtype=dtype)

    def plain(out: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return out + block_lora_reference(*others, 0.7)

    def results(y: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        return [y, *torch.autograd.grad(y, leaves, grad.to(y.dtype))]

    every = results(plain(*high), high), results(plain(*low), low), results(in_place(*low), low)
    for want, allowed, got in zip(*every, strict=True):
        error, plain_error = ((value.to(exact) - want).square().mean().sqrt() for value in (got, allowed))
        assert error <= 2 * plain_error + 1e-6
