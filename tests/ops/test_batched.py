"""The batched product against the loop: outputs and every gradient, in every shape, stride and dtype."""

import itertools
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from melora.ops import block_lora, block_lora_reference
from melora.ops.keep_bits import draw, full_mask, keep_scale

from .cases import call, check_equal, check_gradients, check_precision, check_wanted, copied, leaves, make


@pytest.mark.parametrize("base", [True, False], ids=["with base", "adapter alone"])
@pytest.mark.parametrize("r", [1, 3])
def test_gradcheck_and_double_backward(r: int, base: bool) -> None:
    check_gradients(make(n=2, r=r, block_in=2, block_out=3, leading=(3,), base=base))


@pytest.mark.parametrize("base", [True, False], ids=["with base", "adapter alone"])
def test_gradcheck_with_dropout(base: bool) -> None:
    check_gradients(make(n=2, r=2, block_in=3, block_out=2, leading=(4,), base=base), dropout=0.4)


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=5)))
def test_every_combination_of_wanted_gradients(needs: tuple[bool, ...]) -> None:
    torch.manual_seed(0)
    check_wanted(make(r=1), needs)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 6),
    r=st.integers(1, 4),
    block_in=st.integers(1, 5),
    block_out=st.integers(1, 5),
    leading=st.lists(st.integers(0, 4), max_size=3),
    base=st.booleans(),
    layout=st.sampled_from(["contiguous", "transposed", "strided", "expanded"]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_loop_in_any_shape_and_stride(
    n: int, r: int, block_in: int, block_out: int, leading: list[int], base: bool, layout: str, seed: int
) -> None:
    torch.manual_seed(seed)
    t = make(n, r, block_in, block_out, tuple(leading), base=base)
    x = t["x"].detach()
    if layout == "transposed":
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    elif layout == "strided":
        x = torch.stack([x, x], dim=-1).flatten(-2)[..., ::2]
    elif layout == "expanded":
        x = x[..., :1].expand_as(x)
    t["x"] = x.requires_grad_()
    grad = torch.randn(*leading, n * block_out, dtype=torch.float64)
    grad = grad.transpose(0, -1).contiguous().transpose(0, -1)
    check_equal(t, grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "r"), [(1, 1), (8, 1), (8, 4), (3, 2)])
@pytest.mark.parametrize("base", [True, False], ids=["with base", "adapter alone"])
def test_low_precision_is_as_good_as_plain_pytorch(dtype: torch.dtype, n: int, r: int, base: bool) -> None:
    torch.manual_seed(0)
    check_precision(make(n, r, 16, 24, (64,), dtype=dtype, base=base))


def test_keeps_x_itself_and_the_small_product_alone() -> None:
    t = make(n=4, r=2, block_in=16, block_out=16, leading=(3, 10))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v) or v, lambda v: v):
        call(block_lora, t)
    own = {value.untyped_storage().data_ptr() for value in leaves(t).values()}
    extra = [value.numel() for value in kept if value.untyped_storage().data_ptr() not in own]
    assert extra == [30 * 4 * 2]


@pytest.mark.parametrize("p", [0.3, 0.5])
def test_dropout_keeps_one_bit_an_element_and_no_copy(p: float) -> None:
    t = make(n=4, r=2, block_in=16, block_out=16, leading=(30,))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v) or v, lambda v: v):
        call(block_lora, t, dropout=p)
    own = {value.untyped_storage().data_ptr() for value in leaves(t).values()}
    extra = {v.dtype: v.untyped_storage().nbytes() for v in kept if v.untyped_storage().data_ptr() not in own}
    assert extra == {torch.float64: 30 * 4 * 2 * 8, torch.int64: 30 * 64 // 8}


def masked_reference(t: dict[str, Any], p: float, seed: int) -> torch.Tensor:
    """The loop on x times the mask that `block_lora` draws after this seed, in plain PyTorch."""
    torch.manual_seed(seed)
    x = t["x"]
    mask = full_mask(x, draw(x.numel(), p, x.device)) * keep_scale(p)
    y = block_lora_reference(x * mask, t["A"], t["B"], 0.7)
    return y if t["weight"] is None else y + torch.nn.functional.linear(x, t["weight"], t["bias"])


@pytest.mark.parametrize("base", [True, False], ids=["with base", "adapter alone"])
@pytest.mark.parametrize("p", [0.05, 0.5, 1.0])
# 700 x 256 elements are more than one chunk; 4 x 5 channels share words between rows.
@pytest.mark.parametrize(("n", "r", "block", "rows"), [(4, 1, 64, 700), (4, 3, 64, 700), (4, 2, 5, 7)])
def test_dropout_masks_the_adapters_input_alone_and_the_gradients_with_the_same_mask(
    n: int, r: int, block: int, rows: int, p: float, base: bool
) -> None:
    t = make(n, r, block, 3, (rows,), base=base)
    inputs = list(leaves(t).values())
    grad = torch.randn(rows, n * 3, dtype=torch.float64)
    torch.manual_seed(5)
    y = call(block_lora, t, dropout=p)
    expected = masked_reference(t, p, 5)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    unused = {"allow_unused": True, "materialize_grads": True}
    got = torch.autograd.grad(y, inputs, grad)
    for value, want in zip(got, torch.autograd.grad(expected, inputs, grad, **unused), strict=True):
        torch.testing.assert_close(value, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("r", [1, 4])
def test_dropout_in_low_precision_is_as_good_as_plain_pytorch(dtype: torch.dtype, r: int) -> None:
    torch.manual_seed(0)
    low = make(8, r, 16, 24, (64,), dtype=dtype)
    exact = torch.float64 if dtype == torch.float32 else torch.float32
    high = copied(low, exact)
    grad = torch.randn(64, 8 * 24, dtype=dtype)

    def results(t: dict[str, Any], y: torch.Tensor) -> list[torch.Tensor]:
        return [y, *torch.autograd.grad(y, list(leaves(t).values()), grad.to(y.dtype))]

    oracle = results(high, masked_reference(high, 0.1, 3))
    plain = results(low, masked_reference(low, 0.1, 3))
    torch.manual_seed(3)
    ours = results(low, call(block_lora, low, dropout=0.1))
    for want, allowed, got in zip(oracle, plain, ours, strict=True):
        error, plain_error = ((value.to(exact) - want).square().mean().sqrt() for value in (got, allowed))
        assert error <= 2 * plain_error + 1e-6


def test_checkpointing_draws_the_same_mask_again() -> None:
    t = make(leading=(40,))
    inputs = list(leaves(t).values())
    torch.manual_seed(1)
    expected = torch.autograd.grad(call(block_lora, t, dropout=0.4).square().sum(), inputs)
    torch.manual_seed(1)
    y = torch.utils.checkpoint.checkpoint(lambda: call(block_lora, t, dropout=0.4), use_reentrant=False)
    for value, want in zip(torch.autograd.grad(y.square().sum(), inputs), expected, strict=True):
        assert torch.equal(value, want)


@pytest.mark.parametrize("r", [1, 3])
@pytest.mark.parametrize("leading", [(), (1,), (1, 1)])
def test_one_token_without_gradients(leading: tuple[int, ...], r: int) -> None:
    for base in (True, False):
        t = make(r=r, leading=leading, base=base)
        with torch.no_grad():
            torch.testing.assert_close(call(block_lora, t), call(block_lora_reference, t))


@pytest.mark.parametrize("r", [1, 3])
@pytest.mark.parametrize("leading", [(2,), (32, 1), (3, 40), (130,), (0,)])
def test_few_and_many_tokens_without_gradients(leading: tuple[int, ...], r: int) -> None:
    """On both sides of the number of rows from which on `forward` takes over."""
    for base in (True, False):
        t = make(r=r, leading=leading, base=base)
        with torch.no_grad():
            torch.testing.assert_close(call(block_lora, t), call(block_lora_reference, t))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("r", [1, 3])
@pytest.mark.parametrize("leading", [(1, 1), (7,), (130,)])
@pytest.mark.parametrize("base", [True, False])
def test_few_and_many_tokens_in_low_precision(leading: tuple[int, ...], r: int, dtype: torch.dtype, base: bool) -> None:
    torch.manual_seed(0)
    check_precision(copied(make(r=r, leading=leading, base=base), dtype))


def test_does_not_write_into_its_inputs() -> None:
    t = make()
    before = {name: value.detach().clone() for name, value in leaves(t).items()}
    y = call(block_lora, t)
    grad = torch.ones_like(y)
    y.backward(grad)
    assert all(torch.equal(t[name], value) for name, value in before.items())
    assert torch.equal(grad, torch.ones_like(y))
