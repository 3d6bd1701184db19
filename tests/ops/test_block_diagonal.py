"""The operation with blocks merged, as CPUs take it for some shapes, against the loop: for any shape, on every CPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from melora.ops import block_diagonal, block_lora, products
from melora.ops.block_diagonal import BlockDiagonal, choose_groups

from . import cases


@pytest.fixture
def merge(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Merges the blocks into as many as the parameter says, whatever the shape, the type and the CPU."""
    monkeypatch.setattr(products, "choose_groups", lambda *_: request.param)


@pytest.mark.usefixtures("merge")
@pytest.mark.parametrize("merge", [1, 2], indirect=True)
@pytest.mark.parametrize("mixing", ["none", "learned", "shuffle"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradcheck_and_double_backward(mixing: str, dropout: float) -> None:
    torch.manual_seed(0)
    r = 4 if mixing == "shuffle" else 1
    t = cases.make(4, r, 2, 2, (3,), base=mixing == "none", core=mixing == "learned")
    cases.check_gradients(t, shuffle=mixing == "shuffle", dropout=dropout)


@settings(max_examples=80, deadline=None)
@given(
    groups=st.integers(1, 3),
    each=st.integers(1, 3),
    r=st.integers(1, 3),
    leading=st.lists(st.integers(1, 4), max_size=3).map(tuple),
    core=st.booleans(),
    transposed=st.booleans(),
    narrow=st.sampled_from([1, 32]),
    seed=st.integers(0, 99),
)
def test_any_shape_and_strides(
    groups: int, each: int, r: int, leading: tuple[int, ...], core: bool, transposed: bool, narrow: int, seed: int
) -> None:
    torch.manual_seed(seed)
    t = cases.make(groups * each, r, leading=leading, core=core)
    if transposed and len(leading) > 1:
        t["x"] = t["x"].detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "choose_groups", lambda *_: groups)
        patch.setattr(block_diagonal, "_NARROW", narrow)
        cases.check_equal(t, torch.randn(*leading, groups * each * 5, dtype=torch.float64))


@pytest.mark.usefixtures("merge")
@pytest.mark.parametrize("merge", [1, 8], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("n", "r"), [(8, 1), (8, 8), (32, 1)])
@pytest.mark.parametrize("core", [False, True])
def test_low_precision_is_as_good_as_plain_pytorch(dtype: torch.dtype, n: int, r: int, core: bool) -> None:
    torch.manual_seed(0)
    cases.check_precision(cases.make(n, r, 16, 24, (160,), dtype=dtype, core=core))


@pytest.mark.parametrize("width", [5, 40])
@pytest.mark.parametrize("r", [1, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_merged_blocks_and_blocks_agree(groups: int, r: int, width: int) -> None:
    torch.manual_seed(0)
    blocks = torch.randn(4, r, width, dtype=torch.float64)
    rows = torch.randn(2, 7, 4 * width, dtype=torch.float64)
    ways = [BlockDiagonal(blocks, 4), BlockDiagonal(blocks, groups)]
    u, other = (way.project(rows) for way in ways)
    torch.testing.assert_close(u, other)
    for given_u in ((u, other), (other, u)):  # each takes what the other laid out
        torch.testing.assert_close(*(way.summed(ranks, rows) for way, ranks in zip(ways, given_u, strict=True)))
        sums = [rows.clone(), rows.clone()]
        masked = [rows.clone().view(14, -1), rows.clone().view(14, -1)]
        for way, out, kept, ranks in zip(ways, sums, masked, given_u, strict=True):
            way.accumulate(out, ranks, 0.3)
            way.accumulate_masked(kept, ranks, (rows.view(14, -1) > 0).double(), torch.empty_like(kept))
        torch.testing.assert_close(*sums)
        torch.testing.assert_close(*masked)
        share = sums[0].view(14, -1) - rows.view(14, -1)
        torch.testing.assert_close(masked[0] - rows.view(14, -1), share / 0.3 * (rows.view(14, -1) > 0))


def test_which_blocks_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_diagonal, "_has_arithmetic", lambda dtype: dtype == torch.bfloat16)
    rows = torch.zeros(128, 384)
    assert [choose_groups(rows, n, 1) for n in (1, 2, 8, 12, 16, 32, 64)] == [1, 2, 8, 6, 8, 8, 8]
    assert choose_groups(rows, 128, 1) == 128  # sixteen ranks a block
    assert (choose_groups(rows, 16, 4), choose_groups(rows, 16, 8)) == (8, 16)
    assert choose_groups(rows[:127], 64, 1) == 64  # too few rows to write zeros for
    assert choose_groups(rows.to("meta"), 64, 1) == 64
    short = rows.bfloat16()
    assert (choose_groups(short, 8, 16), choose_groups(short, 8, 17)) == (1, 8)  # wide products cost more than reading
    assert choose_groups(short[:127], 8, 1) == 8
    assert choose_groups(rows.half(), 8, 1) == 8  # no arithmetic


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_this_cpu_is_asked(dtype: torch.dtype) -> None:
    t = cases.make(4, 1, leading=(128,), dtype=dtype)
    y = cases.call(block_lora, t)
    u = BlockDiagonal(t["A"], choose_groups(t["x"], 4, 1)).project(t["x"])
    assert y.dtype == u.dtype == dtype
    assert choose_groups(t["x"], 4, 1) == (1 if block_diagonal._has_arithmetic(dtype) else 4)
