"""The dense way through the operation, which CPUs with 16-bit arithmetic take, against the loop on every CPU."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from melora.ops import block_diagonal, block_lora, products
from melora.ops.block_diagonal import BlockDiagonal, is_dense_faster

from . import cases


@pytest.fixture
def dense(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Takes the dense way whatever the shape, the type and the CPU; says how often it was asked."""
    asked: list[bool] = []

    def always(_rows: torch.Tensor, _ranks: int) -> bool:
        asked.append(True)
        return True

    monkeypatch.setattr(products, "is_dense_faster", always)
    yield asked
    assert asked


@pytest.mark.usefixtures("dense")
@pytest.mark.parametrize("mixing", ["none", "learned", "shuffle"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("base", [True, False], ids=["with base", "adapter alone"])
def test_gradcheck_and_double_backward(mixing: str, dropout: float, base: bool) -> None:
    torch.manual_seed(0)
    t = cases.make(2, 2, leading=(4,), base=base, core=mixing == "learned")
    cases.check_gradients(t, shuffle=mixing == "shuffle", dropout=dropout)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 4),
    r=st.integers(1, 3),
    leading=st.lists(st.integers(1, 4), max_size=3).map(tuple),
    core=st.booleans(),
    transposed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape_and_strides(
    n: int, r: int, leading: tuple[int, ...], core: bool, transposed: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    t = cases.make(n, r, leading=leading, core=core)
    if transposed and len(leading) > 1:
        t["x"] = t["x"].detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "is_dense_faster", lambda *_: True)
        cases.check_equal(t, torch.randn(*leading, n * 5, dtype=torch.float64))


@pytest.mark.usefixtures("dense")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "r"), [(8, 1), (8, 8), (32, 1)])
@pytest.mark.parametrize("core", [False, True])
def test_low_precision_is_as_good_as_plain_pytorch(dtype: torch.dtype, n: int, r: int, core: bool) -> None:
    torch.manual_seed(0)
    cases.check_precision(cases.make(n, r, 16, 24, (160,), dtype=dtype, core=core))


def test_the_dense_way_and_the_blocks_agree() -> None:
    torch.manual_seed(0)
    blocks, rows = torch.randn(4, 3, 5, dtype=torch.float64), torch.randn(2, 7, 20, dtype=torch.float64)
    ways = [BlockDiagonal(blocks, dense) for dense in (False, True)]
    u, other = (way.project(rows) for way in ways)
    torch.testing.assert_close(u, other)
    for left, right in ((u, other), (other, u)):  # each takes what the other laid out
        torch.testing.assert_close(ways[0].summed(left, rows), ways[1].summed(right, rows))
        sums = [rows.clone(), rows.clone()]
        for way, out, ranks in zip(ways, sums, (left, right), strict=True):
            way.accumulate(out, ranks, 0.3)
        torch.testing.assert_close(*sums)
        spread = [way.spread(ranks, rows.new_empty(14, 20)) for way, ranks in zip(ways, (left, right), strict=True)]
        torch.testing.assert_close(*spread)


def test_it_is_taken_for_16_bits_on_a_cpu_that_has_arithmetic_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.zeros(128, 16, dtype=torch.bfloat16)
    monkeypatch.setattr(block_diagonal, "_has_arithmetic", lambda dtype: dtype == torch.bfloat16)
    assert is_dense_faster(rows, 128)
    assert not is_dense_faster(rows, 129)  # wider products cost more than reading the rows
    assert not is_dense_faster(rows[:127], 8)  # too few rows to write zeros for
    assert not is_dense_faster(rows.float(), 8)
    assert not is_dense_faster(rows.half(), 8)
    assert not is_dense_faster(rows.to("meta"), 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_this_cpu_is_asked(dtype: torch.dtype) -> None:
    t = cases.make(4, 1, leading=(128,), dtype=dtype)
    y = cases.call(block_lora, t)
    u = BlockDiagonal(t["A"], is_dense_faster(t["x"], 4)).project(t["x"])
    assert y.dtype == u.dtype == dtype
    assert is_dense_faster(t["x"], 4) == block_diagonal._has_arithmetic(dtype)
