"""The Triton kernels against the loop: on a GPU where there is one, else on the CPU in Triton's interpreter.

conftest.py in the root sets TRITON_INTERPRET where no GPU is; tiles are 16 x 16 then, so small shapes have several.
"""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from melora.ops import block_lora_reference

pytest.importorskip("triton", reason="triton is not installed (CUDA builds of torch bring it; make installs it)")
from melora.ops.triton import HIGHEST_RANK, add_block_lora, block_lora, can_run
from melora.ops.triton.launch import chunk_length, kept_mask

pytestmark = pytest.mark.usefixtures("right_bfloat16")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("x", "weight", "bias", "A", "B")
SCALING = 0.7


def make(
    n: int,
    r: int,
    block_in: int,
    block_out: int,
    leading: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    base: bool = True,
) -> dict[str, Any]:
    d_in, d_out = n * block_in, n * block_out
    tensors = {
        "x": torch.randn(*leading, d_in),
        "weight": torch.randn(d_out, d_in) / d_in**0.5 if base else None,
        "bias": torch.randn(d_out) if base else None,
        "A": torch.randn(n, r, block_in) / block_in**0.5,
        "B": torch.randn(n, block_out, r) / r**0.5,
    }
    return {k: None if v is None else v.to(DEVICE, dtype).requires_grad_() for k, v in tensors.items()}


def output_and_gradients(
    function: Callable[..., torch.Tensor], t: dict[str, Any], grad: torch.Tensor, **options: Any
) -> list[torch.Tensor]:
    y = function(t["x"], t["A"], t["B"], SCALING, weight=t["weight"], bias=t["bias"], **options)
    return [y, *torch.autograd.grad(y, [t[name] for name in NAMES if t[name] is not None], grad)]


def cast(t: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {k: None if v is None else v.detach().to(dtype).requires_grad_() for k, v in t.items()}


def assert_as_good_as_plain_pytorch(t: dict[str, Any], grad: torch.Tensor) -> None:
    """Error to the exact result at most twice that of the plain loop in this dtype, plus 1e-6."""
    exact = torch.float64 if grad.dtype == torch.float32 else torch.float32
    oracle = output_and_gradients(block_lora_reference, cast(t, exact), grad.to(exact))
    plain = output_and_gradients(block_lora_reference, t, grad)
    ours = output_and_gradients(block_lora, t, grad)
    for want, allowed, got in zip(oracle, plain, ours, strict=True):
        assert got.shape == want.shape
        assert got.dtype == grad.dtype
        error, plain_error = ((value.to(exact) - want).abs().max() for value in (got, allowed))
        assert error <= 2 * plain_error + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("n", "r", "block_in", "block_out", "tokens", "base"),
    [
        (3, 1, 20, 17, 21, True),  # several tiles each way, none of them full
        (3, 1, 33, 16, 16, False),
        (2, 3, 37, 5, 70, True),  # three chunks of several tiles
        (1, 17, 16, 40, 5, False),
        (5, 2, 1, 3, 1, True),
    ],
)
def test_as_good_as_plain_pytorch(
    dtype: torch.dtype, n: int, r: int, block_in: int, block_out: int, tokens: int, base: bool
) -> None:
    torch.manual_seed(0)
    t = make(n, r, block_in, block_out, (tokens,), dtype, base)
    assert_as_good_as_plain_pytorch(t, torch.randn(tokens, n * block_out).to(DEVICE, dtype))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 3),
    r=st.sampled_from([1, 2, 5]),
    block_in=st.integers(1, 20),
    block_out=st.integers(1, 20),
    leading=st.lists(st.integers(0, 3), max_size=3),
    base=st.booleans(),
    layout=st.sampled_from(["contiguous", "transposed", "strided", "expanded", "offset"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_shape_and_stride(
    n: int,
    r: int,
    block_in: int,
    block_out: int,
    leading: list[int],
    base: bool,
    layout: str,
    dtype: torch.dtype,
) -> None:
    def lay(value: torch.Tensor) -> torch.Tensor:
        if layout == "transposed":
            return value.transpose(0, -1).contiguous().transpose(0, -1)
        if layout == "strided":
            return torch.stack([value, value], dim=-1).flatten(-2)[..., ::2]
        if layout == "expanded":
            return value[..., :1].expand_as(value)
        return F.pad(value, (3, 2))[..., 3:-2] if layout == "offset" else value

    torch.manual_seed(0)
    t = make(n, r, block_in, block_out, tuple(leading), dtype, base)
    t["x"] = lay(t["x"].detach()).requires_grad_()
    t["A"] = t["A"].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    grad = lay(torch.randn(*leading, n * block_out).to(DEVICE, dtype))
    if 0 in leading:
        y, grad_x, *others = output_and_gradients(block_lora, t, grad)
        assert (y.shape, grad_x.shape) == (grad.shape, t["x"].shape)
        assert not any(value.any() for value in others)
    else:
        assert_as_good_as_plain_pytorch(t, grad)


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3)))
def test_every_combination_of_wanted_gradients(needs: tuple[bool, ...]) -> None:
    torch.manual_seed(0)
    t = make(2, 1, 5, 3, (4,))
    grad = torch.randn(4, 6).to(DEVICE)
    every = dict(zip(NAMES, output_and_gradients(block_lora_reference, t, grad)[1:], strict=True))
    wanted = [name for name, need in zip(("x", "A", "B"), needs, strict=True) if need]
    t = {name: value.detach().requires_grad_(name in wanted) for name, value in t.items()}
    y = block_lora(t["x"], t["A"], t["B"], SCALING, weight=t["weight"], bias=t["bias"])
    assert y.requires_grad == bool(wanted)
    if wanted:
        for name, got in zip(wanted, torch.autograd.grad(y, [t[name] for name in wanted], grad), strict=True):
            torch.testing.assert_close(got, every[name], msg=lambda text, name=name: f"{name}: {text}")


def test_adds_to_the_output_of_another_base_and_leaves_it() -> None:
    torch.manual_seed(0)
    t = make(2, 3, 5, 4, (3, 2), base=False)
    out = torch.randn(3, 2, 8, device=DEVICE, requires_grad=True)
    before = out.detach().clone()
    y = add_block_lora(out, t["x"], t["A"], t["B"], SCALING, in_place=True)
    torch.testing.assert_close(y, out + block_lora_reference(t["x"], t["A"], t["B"], SCALING))
    grad = torch.randn_like(y)
    assert torch.equal(torch.autograd.grad(y, out, grad)[0], grad)
    assert torch.equal(out, before)


def test_the_same_bits_every_time() -> None:
    torch.manual_seed(0)
    t = make(2, 1, 6, 20, (40,))
    assert chunk_length(40, 2, 1) < 40 or DEVICE == "cuda"  # several sums to add
    grad = torch.randn(40, 40, device=DEVICE)
    first, second = (output_and_gradients(block_lora, t, grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def draw(dropout: float, tokens: int, n: int, block: int, seed: int) -> torch.Tensor:
    """What is kept, as (tokens, n * block) zeros and ones."""
    x = torch.empty(tokens, n * block, device=DEVICE)
    return kept_mask(x, n, torch.tensor([seed], device=DEVICE), dropout).float()


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_drops_its_share_independently(dropout: float) -> None:
    kept = draw(dropout, 160, 2, 64, seed=1)
    deviation = (dropout * (1 - dropout)) ** 0.5
    for part in (kept, kept[:, 0::4], kept[:, 3::4], kept[:, :64], kept[80:]):
        assert abs(part.mean().item() - (1 - dropout)) < 4 * deviation / part.numel() ** 0.5
    # Neighbours in a call of Philox, minis, tokens and seeds agree as often as chance has it.
    again = draw(dropout, 160, 2, 64, seed=2)
    pairs = [(kept[:, 0::4], kept[:, 1::4]), (kept[:, :64], kept[:, 64:]), (kept[1:], kept[:-1]), (kept, again)]
    chance = dropout**2 + (1 - dropout) ** 2
    for one, other in pairs:
        share = (one == other).float().mean().item()
        assert abs(share - chance) < 4 * (chance * (1 - chance) / one.numel()) ** 0.5


@pytest.mark.parametrize(("dropout", "factor"), [(0.0, 1.0), (1.0, 0.0)])
def test_no_and_full_dropout(dropout: float, factor: float) -> None:
    t = make(2, 1, 5, 3, (4,), base=False)
    y = block_lora(t["x"], t["A"], t["B"], SCALING, dropout=dropout)
    torch.testing.assert_close(y, factor * block_lora_reference(t["x"], t["A"], t["B"], SCALING))


@pytest.mark.parametrize("base", [True, False], ids=["with base", "adapter alone"])
@pytest.mark.parametrize("r", [1, 3])
def test_dropout_has_the_same_mask_forward_and_backward(r: int, base: bool) -> None:
    torch.manual_seed(0)
    t = make(2, r, 20, 7, (5, 4), base=base)
    grad = torch.randn(5, 4, 14, device=DEVICE)
    torch.manual_seed(3)
    ours = output_and_gradients(block_lora, t, grad, dropout=0.3)
    torch.manual_seed(3)
    seed = torch.randint(2**62, (1,), device=DEVICE)
    mask = kept_mask(t["x"], 2, seed, 0.3)
    assert 0 < mask.sum() < mask.numel()

    def expected(x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, scaling: float, **base: Any) -> torch.Tensor:
        y = block_lora_reference(x * mask / 0.7, A, B, scaling)
        return y if base["weight"] is None else y + F.linear(x, base["weight"], base["bias"])

    for got, want in zip(ours, output_and_gradients(expected, t, grad), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_second_derivatives(dropout: float) -> None:
    torch.manual_seed(0)
    t = make(2, 2, 5, 3, (4,))
    leaves, grad = [t[name] for name in NAMES], torch.randn(4, 6, device=DEVICE, requires_grad=True)
    torch.manual_seed(3)
    mask = kept_mask(t["x"], 2, torch.randint(2**62, (1,), device=DEVICE), dropout) / (1 - dropout)
    y = block_lora_reference(t["x"] * mask, t["A"], t["B"], SCALING) + F.linear(t["x"], t["weight"], t["bias"])
    torch.manual_seed(3)
    ours = block_lora(
        *(t[name] for name in ("x", "A", "B")), SCALING, weight=t["weight"], bias=t["bias"], dropout=dropout
    )
    results = []
    for output in (y, ours):
        first = torch.autograd.grad(output, leaves, grad, create_graph=True)
        total = sum((value.square().sum() for value in first), torch.zeros((), device=DEVICE))
        results.append([*first, *torch.autograd.grad(total, [t["x"], t["weight"], t["A"], t["B"], grad])])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_keeps_x_itself_and_the_small_product_and_a_seed() -> None:
    t = make(4, 2, 16, 16, (3, 10))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v) or v, lambda v: v):
        block_lora(t["x"], t["A"], t["B"], SCALING, weight=t["weight"], bias=t["bias"], dropout=0.1)
    own = {t[name].untyped_storage().data_ptr() for name in NAMES}
    extra = [value.numel() for value in kept if value.untyped_storage().data_ptr() not in own]
    assert sorted(extra) == [1, 30 * 4 * 2]


def test_offsets_beyond_32_bits() -> None:
    """Rows 2**30 elements apart: 4 GiB of address space, of which a few pages are touched."""
    storage = torch.empty(2**31 + 8, dtype=torch.float16, device=DEVICE)
    x = storage.as_strided((3, 8), (2**30, 1))
    torch.manual_seed(0)
    x.copy_(torch.randn(3, 8))
    t = make(2, 1, 4, 3, (3,), torch.float16, base=False)
    t["x"] = x.requires_grad_()
    assert_as_good_as_plain_pytorch(t, torch.randn(3, 6).to(DEVICE, torch.float16))


def test_what_the_kernels_do_not_take() -> None:
    t = make(2, 1, 4, 3, (3,))
    assert can_run(t["x"], t["A"])
    assert not can_run(t["x"].double(), t["A"])
    assert not can_run(t["x"].to("meta"), t["A"])
    assert not can_run(t["x"], torch.empty(2, HIGHEST_RANK + 1, 4))


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA GPU: Triton's interpreter can't be compiled into a graph")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_compiled_on_a_gpu(dropout: float) -> None:
    t = make(4, 2, 40, 24, (50,))
    grad = torch.randn(50, 96, device=DEVICE)
    compiled = torch.compile(block_lora, fullgraph=True, dynamic=True)
    results = []
    for function in (block_lora, compiled):
        torch.manual_seed(3)
        results.append(output_and_gradients(function, t, grad, dropout=dropout))
    if dropout == 0.0:  # inductor draws other seeds than eager code does
        for want, got in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert all(value.isfinite().all() for value in results[1])
