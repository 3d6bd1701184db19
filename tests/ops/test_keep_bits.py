"""The mask of dropout: its rate, its independence, and that it comes back as it was drawn."""

import math

import pytest
import torch

from melora.ops.keep_bits import draw, full_mask, keep_scale

CPU = torch.device("cpu")
WIDTH, ROWS = 96, 6000  # several draws and chunks


def mask(p: float, seed: int, rows: int = ROWS, width: int = WIDTH) -> torch.Tensor:
    torch.manual_seed(seed)
    return full_mask(torch.empty(rows, width), draw(rows * width, p, CPU))


def sigmas(mean: float, expected: float, variance: float, count: int) -> float:
    """How many standard deviations a mean of `count` independent values is off."""
    return abs(mean - expected) / math.sqrt(variance / count)


@pytest.mark.parametrize("p", [0.001, 0.05, 0.1, 0.3, 0.5, 0.75, 0.999])
def test_rate_in_all_in_each_row_and_in_each_column(p: float) -> None:
    m, keep = mask(p, 0), 1 - p
    assert set(m.unique().tolist()) <= {0.0, 1.0}
    variance = keep * (1 - keep)
    assert sigmas(m.mean().item(), keep, variance, m.numel()) < 5
    # Sums over rows and columns are spread as independent elements are: chi-square over their number of freedoms.
    for dim, length in ((0, ROWS), (1, WIDTH)):
        sums = m.double().sum(dim)
        spread = ((sums - length * keep).square() / (length * variance)).mean().item()
        kurtosis = 2 + (1 - 6 * variance) / (length * variance)  # the variance of one such square
        assert sigmas(spread, 1.0, kurtosis, len(sums)) < 5


# 1, 8, 64: bits, bytes and words; 12 * WIDTH / 8 and the like: neighbours in memory are not neighbours in a word.
@pytest.mark.parametrize("distance", [1, 2, 7, 8, 63, 64, 65, WIDTH, 8 * WIDTH, 2**14, 2**15, 2**17, 2**18])
@pytest.mark.parametrize("p", [0.05, 0.5])
def test_elements_at_any_distance_are_independent(p: float, distance: int) -> None:
    m = mask(p, 1).flatten().double() - (1 - p)
    products = m[distance:] * m[:-distance]
    variance = (p * (1 - p)) ** 2
    assert sigmas(products.mean().item(), 0.0, variance, len(products)) < 5


@pytest.mark.parametrize("p", [0.05, 0.3])
def test_the_rate_over_many_calls_is_exact(p: float) -> None:
    """Each call draws what its table of 2^16 entries can't hold: over calls, no rounding of the rate is left."""
    m = torch.stack([mask(p, seed, rows=3000) for seed in range(100)])
    assert sigmas(m.mean().item(), 1 - p, p * (1 - p), m.numel()) < 5


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_every_pattern_of_a_byte_has_its_probability(p: float) -> None:
    m = mask(p, 3, rows=60000).view(-1, 8).long()
    counts = torch.bincount((m << torch.arange(8)).sum(1), minlength=256).double()
    kept = torch.tensor([pattern.bit_count() for pattern in range(256)])
    expected = (1 - p) ** kept * p ** (8.0 - kept) * len(m)
    often = expected > 20
    chi = ((counts - expected)[often].square() / expected[often]).sum().item()
    freedoms = int(often.sum())
    assert abs(chi - freedoms) / math.sqrt(2 * freedoms) < 5


def test_threads_change_nothing() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = mask(0.05, 5)
        torch.set_num_threads(2)
        assert torch.equal(mask(0.05, 5), one)
    finally:
        torch.set_num_threads(before)


def test_calls_differ_are_independent_and_come_again_with_the_seed() -> None:
    torch.manual_seed(7)
    first, second = (full_mask(torch.empty(ROWS, WIDTH), draw(ROWS * WIDTH, 0.3, CPU)) for _ in range(2))
    assert torch.equal(mask(0.3, 7), first)
    products = (first.double() - 0.7) * (second.double() - 0.7)
    assert sigmas(products.mean().item(), 0.0, (0.3 * 0.7) ** 2, products.numel()) < 5


@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 1), (1, 63), (3, 64), (5, 77), (9000, 33)])
def test_any_shape_takes_one_bit_an_element_and_keeps_every_dtype_alike(rows: int, width: int) -> None:
    bits = draw(rows * width, 0.4, CPU)
    assert bits.numel() == -(-rows * width // 64)
    expected = full_mask(torch.empty(rows, width), bits)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert torch.equal(full_mask(torch.empty(rows, width, dtype=dtype), bits).float(), expected)


def test_the_ends() -> None:
    assert keep_scale(0.0) == 1.0
    assert keep_scale(0.25) == 1 / 0.75
    assert keep_scale(1.0) == 0.0
    assert mask(1e-9, 0).all()
    assert not mask(1 - 1e-9, 0).any()
    assert mask(0.0, 0).all()
    assert not mask(1.0, 0).any()
