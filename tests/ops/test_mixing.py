"""Ranks mixed across blocks, by a learned core or by the shuffle, against the loop."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from melora.ops import add_block_lora, block_lora, block_lora_reference, grouped_block_lora
from melora.ops.mixing import exchange

NAMES = ("x", "weight", "bias", "A", "B", "core")


def make(
    mixing: str,
    n: int = 2,
    q: int = 1,
    leading: tuple[int, ...] = (3,),
    dtype: torch.dtype = torch.float64,
    base: bool = True,
    block_in: int = 3,
    block_out: int = 5,
) -> dict[str, Any]:
    """Tensors with r = q, or n * q where ranks are exchanged."""
    r = n * q if mixing == "shuffle" else q
    d_in, d_out = n * block_in, n * block_out
    tensors = {
        "x": torch.randn(*leading, d_in, dtype=dtype),
        "weight": torch.randn(d_out, d_in, dtype=dtype) / d_in**0.5 if base else None,
        "bias": torch.randn(d_out, dtype=dtype) if base else None,
        "A": torch.randn(n, r, block_in, dtype=dtype) / block_in**0.5,
        "B": torch.randn(n, block_out, r, dtype=dtype) / r**0.5,
        "core": torch.randn(r, n, n, dtype=dtype) if mixing == "learned" else None,
    }
    return {key: None if value is None else value.requires_grad_() for key, value in tensors.items()}


def call(function: Any, t: dict[str, Any], **kwargs: Any) -> torch.Tensor:
    rest = {"weight": t["weight"], "bias": t["bias"], "core": t["core"], "shuffle": t["core"] is None, **kwargs}
    y: torch.Tensor = function(t["x"], t["A"], t["B"], 0.7, **rest)
    return y


def output_and_gradients(function: Any, t: dict[str, Any], grad: torch.Tensor) -> list[torch.Tensor]:
    y = call(function, t)
    return [y, *torch.autograd.grad(y, [t[name] for name in NAMES if t[name] is not None], grad)]


def filled(t: dict[str, Any], values: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    return {**t, **dict(zip([name for name in NAMES if t[name] is not None], values, strict=True))}


both = pytest.mark.parametrize("mixing", ["learned", "shuffle"])


@both
@pytest.mark.parametrize("base", [True, False], ids=["with base", "adapter alone"])
@pytest.mark.parametrize("q", [1, 2])
def test_gradcheck_and_double_backward(mixing: str, q: int, base: bool) -> None:
    torch.manual_seed(0)
    t = make(mixing, q=q, base=base)
    leaves = [t[name] for name in NAMES if t[name] is not None]
    assert gradcheck(lambda *values: call(block_lora, filled(t, values)), leaves)
    assert gradgradcheck(lambda *values: call(block_lora, filled(t, values)), leaves)


@both
def test_gradcheck_with_dropout(mixing: str) -> None:
    torch.manual_seed(0)
    t = make(mixing, q=2, leading=(4,))
    leaves = [t[name] for name in NAMES if t[name] is not None]

    def f(*values: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)  # the same mask in every evaluation
        return call(block_lora, filled(t, values), dropout=0.4)

    assert gradcheck(f, leaves)
    assert gradgradcheck(f, leaves)


@both
@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 5),
    q=st.integers(1, 3),
    leading=st.lists(st.integers(0, 4), max_size=3),
    base=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_equals_the_loop_in_any_shape(mixing: str, n: int, q: int, leading: list[int], base: bool, seed: int) -> None:
    torch.manual_seed(seed)
    t = make(mixing, n, q, tuple(leading), base=base)
    grad = torch.randn(*leading, 5 * n, dtype=torch.float64)
    expected = output_and_gradients(block_lora_reference, t, grad)
    for got, want in zip(output_and_gradients(block_lora, t, grad), expected, strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(call(block_lora, t), expected[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=4)))
def test_every_combination_of_wanted_gradients(needs: tuple[bool, ...]) -> None:
    torch.manual_seed(0)
    t = make("learned", n=3, q=2, base=False)
    names = [name for name in NAMES if t[name] is not None]
    grad = torch.randn(3, 15, dtype=torch.float64)
    every = dict(zip(names, output_and_gradients(block_lora_reference, t, grad)[1:], strict=True))
    for name, need in zip(names, needs, strict=True):
        t[name] = t[name].detach().requires_grad_(need)
    y = call(block_lora, t)
    assert y.requires_grad == any(needs)
    wanted = [name for name, need in zip(names, needs, strict=True) if need]
    if wanted:
        for name, value in zip(wanted, torch.autograd.grad(y, [t[name] for name in wanted], grad), strict=True):
            torch.testing.assert_close(value, every[name], msg=lambda text, name=name: f"{name}: {text}")


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("q", [1, 2])
def test_low_precision_is_as_good_as_plain_pytorch(mixing: str, dtype: torch.dtype, q: int) -> None:
    torch.manual_seed(0)
    low = make(mixing, 4, q, (64,), dtype, block_in=16, block_out=24)
    exact = torch.float64 if dtype == torch.float32 else torch.float32
    high = {k: None if v is None else v.detach().to(exact).requires_grad_() for k, v in low.items()}
    grad = torch.randn(64, 96, dtype=dtype)
    oracle = output_and_gradients(block_lora_reference, high, grad.to(exact))
    plain = output_and_gradients(block_lora_reference, low, grad)
    for want, allowed, got in zip(oracle, plain, output_and_gradients(block_lora, low, grad), strict=True):
        assert got.dtype == dtype
        error, plain_error = ((value.to(exact) - want).abs().max() for value in (got, allowed))
        assert error <= 2 * plain_error + 1e-6


@both
@pytest.mark.parametrize("in_place", [True, False])
def test_added_to_the_output_of_a_base(mixing: str, in_place: bool) -> None:
    torch.manual_seed(0)
    t = make(mixing, base=False)
    out = torch.randn(3, 10, dtype=torch.float64)
    expected = out + call(block_lora_reference, t)
    y = add_block_lora(
        out.clone(), t["x"], t["A"], t["B"], 0.7, core=t["core"], shuffle=mixing == "shuffle", in_place=in_place
    )
    torch.testing.assert_close(y, expected)
    with torch.no_grad():
        again = add_block_lora(out, t["x"], t["A"], t["B"], 0.7, core=t["core"], shuffle=mixing == "shuffle")
    torch.testing.assert_close(again, expected)


@both
def test_one_token_without_gradients(mixing: str) -> None:
    torch.manual_seed(0)
    t = make(mixing, n=3, q=2, leading=(1, 1))
    with torch.no_grad():
        torch.testing.assert_close(call(block_lora, t), call(block_lora_reference, t))


@both
def test_the_identity_is_plain_melora_and_the_exchange_its_own_inverse(mixing: str) -> None:
    torch.manual_seed(0)
    t = make(mixing, n=3, q=2)
    plain = block_lora_reference(t["x"], t["A"], t["B"], 0.7, weight=t["weight"], bias=t["bias"])
    if mixing == "learned":
        core = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
        y = block_lora(t["x"], t["A"], t["B"], 0.7, weight=t["weight"], bias=t["bias"], core=core)
        torch.testing.assert_close(y, plain)
    else:
        u = torch.randn(3, 7, 6)
        assert torch.equal(exchange(exchange(u, 0), 0), u)
        assert not torch.allclose(call(block_lora, t), plain)


@both
@settings(max_examples=20, deadline=None)
@given(adapters=st.integers(1, 4), rows=st.integers(1, 5), seed=st.integers(0, 2**16))
def test_rows_through_adapters_of_their_own(mixing: str, adapters: int, rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    each = [make(mixing, n=2, q=2, leading=(rows, 3), base=False) for _ in range(adapters)]
    x, index = each[0]["x"], torch.randint(adapters, (rows,))
    A, B = (torch.stack([t[name] for t in each]) for name in "AB")
    core = torch.stack([t["core"] for t in each]) if mixing == "learned" else None
    scaling = torch.full((adapters,), 0.7, dtype=torch.float64)
    y = grouped_block_lora(x, A, B, scaling, index, core=core, shuffle=mixing == "shuffle")
    for row, which in enumerate(index):
        expected = call(block_lora_reference, {**each[which], "x": x[row]})
        torch.testing.assert_close(y[row], expected)


@both
@pytest.mark.parametrize("base", [True, False])
def test_compiled_it_is_one_operator_with_the_same_gradients(mixing: str, base: bool) -> None:
    torch.manual_seed(0)
    t = make(mixing, n=2, q=2, base=base)
    grad = torch.randn(3, 10, dtype=torch.float64)
    leaves = [t[name] for name in NAMES if t[name] is not None]
    y = torch.compile(lambda: call(block_lora, t), backend="aot_eager", fullgraph=True)()
    expected = output_and_gradients(block_lora_reference, t, grad)
    for got, want in zip([y, *torch.autograd.grad(y, leaves, grad)], expected, strict=True):
        torch.testing.assert_close(got, want)


@both
def test_the_operators_keep_the_contract_of_torch_library(mixing: str) -> None:
    from melora.ops import registered

    t = make(mixing, n=2, q=2)
    shuffle = mixing == "shuffle"
    args = (t["x"], t["weight"], t["bias"], t["A"], t["B"], 0.7, 0.0, t["core"], shuffle)
    torch.library.opcheck(registered._block_lora, args)
    out = torch.randn(3, 10, dtype=torch.float64)
    torch.library.opcheck(registered._add_block_lora, (out, t["x"], t["A"], t["B"], 0.7, 0.0, t["core"], shuffle))
