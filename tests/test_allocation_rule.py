import math

from hypothesis import given
from hypothesis import strategies as st

from melora.allocation_rule import choose_n, choose_ranks, largest_rank, rank_step

SIZES = st.integers(1, 5000)
RANKS = st.integers(1, 64)
ERANKS = st.floats(0, 5000, allow_nan=False)


def modules(draw: st.DrawFn) -> tuple[dict[str, float], dict[str, tuple[int, int]], int]:
    count = draw(st.integers(1, 6))
    names = [f"m{i}" for i in range(count)]
    eranks = {name: draw(st.floats(0, 64)) for name in names}
    sizes = {name: (draw(st.integers(1, 40)), draw(st.integers(1, 40))) for name in names}
    smallest = sum(map(sum, sizes.values()))
    return eranks, sizes, smallest + draw(st.integers(0, 3000))


@given(ERANKS, RANKS, SIZES, SIZES)
def test_n_divides_both_sizes_and_is_the_largest_divisor_up_to_the_power(
    erank: float, r: int, d_in: int, d_out: int
) -> None:
    n = choose_n(erank, r, d_in, d_out)
    assert d_in % n == 0
    assert d_out % n == 0
    assert n * r <= erank * (1 + 1e-9) or n == 1
    power = 2 ** max(0, math.floor(math.log2(erank / r * (1 + 1e-9)))) if erank >= r / 2 else 1
    most = min(power, min(d_in, d_out) // r)  # a block of fewer rows or columns than r would waste ranks
    assert n <= max(1, most)
    assert not any(d_in % k == 0 and d_out % k == 0 for k in range(n + 1, most + 1))


@given(ERANKS, RANKS)
def test_before_clipping_n_is_a_power_of_two(erank: float, r: int) -> None:
    n = choose_n(erank, r, 2**13, 2**13)  # every power up to 5000 divides these
    assert n & (n - 1) == 0
    assert 2 * n * r > erank


@given(ERANKS, ERANKS, RANKS, SIZES, SIZES)
def test_n_grows_with_the_effective_rank_and_shrinks_with_r(a: float, b: float, r: int, d_in: int, d_out: int) -> None:
    low, high = sorted((a, b))
    assert choose_n(low, r, d_in, d_out) <= choose_n(high, r, d_in, d_out)
    assert choose_n(a, r + 1, d_in, d_out) <= choose_n(a, r, d_in, d_out)


def test_ties_and_rounding() -> None:
    assert [choose_n(erank, 1, 64, 64) for erank in (0, 0.5, 1, 1.99, 2, 3.99, 4, 63.9, 64, 1e9)] == [
        *(1, 1, 1, 1, 2, 2, 4),
        *(32, 64, 64),
    ]
    assert choose_n(24.0, 3, 64, 64) == 8  # 24 / 3 is a power of two
    assert choose_n(8 - 1e-12, 1, 64, 64) == 8  # 8, and the rounding of a decomposition
    assert choose_n(8 - 1e-6, 1, 64, 64) == 4
    assert choose_n(300, 1, 384, 1152) == 192  # of 256, the largest divisor of 384 that is not above it
    assert choose_n(300, 1, 7, 11) == 1
    assert choose_n(300, 12, 64, 64, "shuffle") == 4  # of 16, the largest that divides r = 12 too
    assert choose_n(195.7, 1, 384, 384, "learned") == 24  # of 128: 24^2 numbers beside 768
    assert choose_n(32, 1, 32, 32, init_weights="pissa") == 32
    assert choose_n(32, 1, 32, 32, init_weights="lora_ga") == 16  # which takes 2 r directions of each block


@given(ERANKS, RANKS, SIZES, SIZES)
def test_a_core_has_no_more_numbers_than_the_factors(erank: float, r: int, d_in: int, d_out: int) -> None:
    n = choose_n(erank, r, d_in, d_out, "learned")
    assert n * n * r <= r * (d_in + d_out)
    free = choose_n(erank, r, d_in, d_out)
    assert n == max(k for k in range(1, free + 1) if d_in % k == 0 == d_out % k and k * k <= d_in + d_out)


def test_ranks_that_fit_a_minis_block() -> None:
    assert largest_rank(32, 64, None) == 32  # n follows from r, and may be 1
    assert largest_rank(32, 64, 8) == 4
    assert largest_rank(32, 64, 8, init_weights="pissa") == 4
    assert largest_rank(32, 64, 8, init_weights="lora_ga") == 2
    assert largest_rank(32, 64, None, init_weights="lora_ga") == 16
    assert largest_rank(32, 64, 8, "shuffle") == 32  # each of the 64 blocks has r / 8 of the ranks
    assert (rank_step(8, "shuffle"), rank_step(8), rank_step(None, "shuffle")) == (8, 1, 1)


@given(st.data())
def test_a_budget_is_never_exceeded_and_what_is_left_is_less_than_a_rank(data: st.DataObject) -> None:
    eranks, sizes, budget = modules(data.draw)
    ranks = choose_ranks(eranks, sizes, budget)
    assert list(ranks) == list(eranks)
    assert all(1 <= rank <= min(sizes[name]) for name, rank in ranks.items())
    spent = sum(rank * sum(sizes[name]) for name, rank in ranks.items())
    assert spent <= budget
    could_grow = [sum(sizes[name]) for name, rank in ranks.items() if eranks[name] > 0 and rank < min(sizes[name])]
    assert not could_grow or budget - spent < max(could_grow)
    assert ranks == choose_ranks(eranks, sizes, budget)


@given(st.data())
def test_ranks_go_in_steps_up_to_a_limit(data: st.DataObject) -> None:
    eranks, sizes, _ = modules(data.draw)
    steps = {name: data.draw(st.integers(1, 4)) for name in sizes}
    most = {name: steps[name] * data.draw(st.integers(1, 5)) + data.draw(st.integers(0, 1)) for name in sizes}
    first = sum(steps[name] * sum(sizes[name]) for name in sizes)
    budget = first + data.draw(st.integers(0, 3000))
    ranks = choose_ranks(eranks, sizes, budget, steps=steps, most=most)
    assert all(ranks[name] % steps[name] == 0 and steps[name] <= ranks[name] <= most[name] for name in sizes)
    left = budget - sum(rank * sum(sizes[name]) for name, rank in ranks.items())
    growing = [name for name in sizes if eranks[name] > 0 and ranks[name] + steps[name] <= most[name]]
    assert left >= 0
    assert not growing or left < max(steps[name] * sum(sizes[name]) for name in growing)
    more = choose_ranks(eranks, sizes, budget + data.draw(st.integers(0, 500)), steps=steps, most=most)
    assert all(ranks[name] <= more[name] for name in sizes)


@given(st.data(), st.integers(0, 500))
def test_no_module_loses_when_the_budget_grows(data: st.DataObject, more: int) -> None:
    eranks, sizes, budget = modules(data.draw)
    small, large = choose_ranks(eranks, sizes, budget), choose_ranks(eranks, sizes, budget + more)
    assert all(small[name] <= large[name] for name in small)


@given(st.data())
def test_more_effective_rank_is_no_less_rank(data: st.DataObject) -> None:
    eranks, sizes, budget = modules(data.draw)
    same = dict.fromkeys(sizes, (20, 20))
    ranks = choose_ranks(eranks, same, max(budget, 40 * len(same)))
    for a in ranks:
        for b in ranks:
            assert eranks[a] <= eranks[b] or ranks[a] >= ranks[b]


def test_ranks_are_in_proportion() -> None:
    eranks, sizes = {"a": 30.0, "b": 10.0, "c": 20.0, "d": 0.0}, dict.fromkeys("abcd", (100, 100))
    assert choose_ranks(eranks, sizes, 200 * (60 + 1)) == {"a": 30, "b": 10, "c": 20, "d": 1}
    assert choose_ranks(eranks, sizes, 200 * (12 + 1)) == {"a": 6, "b": 2, "c": 4, "d": 1}
    assert choose_ranks(eranks, sizes, 200 * 4 + 199) == {"a": 1, "b": 1, "c": 1, "d": 1}
    assert choose_ranks({"a": 1.0, "b": 1.0}, {"a": (9, 9), "b": (9, 9)}, 18 * 3) == {"a": 2, "b": 1}
    assert choose_ranks({"a": 1.0}, {"a": (9, 5)}, 10**6) == {"a": 5}
    by_four = choose_ranks(eranks, sizes, 200 * (60 + 4), steps=dict.fromkeys("abcd", 4))
    assert by_four == {"a": 32, "b": 8, "c": 20, "d": 4}
