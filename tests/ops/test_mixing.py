"""Ranks mixed across blocks, by a learned core or by the shuffle, against the loop."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from melora.ops import add_block_lora, block_lora, block_lora_reference, grouped_block_lora
from melora.ops.mixing import exchange

from . import cases


def make(mixing: str, n: int = 2, q: int = 1, leading: tuple[int, ...] = (3,), **kwargs: Any) -> dict[str, Any]:
    """Tensors with r = q, or n * q where ranks are exchanged."""
    return cases.make(n, n * q if mixing == "shuffle" else q, leading=leading, core=mixing == "learned", **kwargs)


def call(function: Any, t: dict[str, Any], **kwargs: Any) -> torch.Tensor:
    return cases.call(function, t, shuffle=t["core"] is None, **kwargs)


both = pytest.mark.parametrize("mixing", ["learned", "shuffle"])


@both
@pytest.mark.parametrize("base", [True, False], ids=["with base", "adapter alone"])
@pytest.mark.parametrize("q", [1, 2])
def test_gradcheck_and_double_backward(mixing: str, q: int, base: bool) -> None:
    torch.manual_seed(0)
    cases.check_gradients(make(mixing, q=q, base=base), shuffle=mixing == "shuffle")


@both
def test_gradcheck_with_dropout(mixing: str) -> None:
    torch.manual_seed(0)
    cases.check_gradients(make(mixing, q=2, leading=(4,)), shuffle=mixing == "shuffle", dropout=0.4)


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
    cases.check_equal(t, torch.randn(*leading, 5 * n, dtype=torch.float64), shuffle=mixing == "shuffle")


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=4)))
def test_every_combination_of_wanted_gradients(needs: tuple[bool, ...]) -> None:
    torch.manual_seed(0)
    cases.check_wanted(make("learned", n=3, q=2, base=False), needs)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("q", [1, 2])
def test_low_precision_is_as_good_as_plain_pytorch(mixing: str, dtype: torch.dtype, q: int) -> None:
    torch.manual_seed(0)
    cases.check_precision(
        make(mixing, 4, q, (64,), dtype=dtype, block_in=16, block_out=24), shuffle=mixing == "shuffle"
    )


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
@pytest.mark.parametrize("tokens", [1, 5])
def test_few_tokens_without_gradients(mixing: str, tokens: int) -> None:
    torch.manual_seed(0)
    t = make(mixing, n=3, q=2, leading=(tokens, 1))
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
    leaves = list(cases.leaves(t).values())
    y = torch.compile(lambda: call(block_lora, t), backend="aot_eager", fullgraph=True)()
    expected = cases.output_and_gradients(block_lora_reference, t, grad, shuffle=mixing == "shuffle")
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
