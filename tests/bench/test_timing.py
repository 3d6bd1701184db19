from collections.abc import Callable

import pytest

from melora.bench import timing


class Clock:
    """Time that only the steps under test move on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def step(self, name: str, seconds: list[float]) -> Callable[[], None]:
        def step() -> None:
            self.calls.append(name)
            self.now += seconds[(self.calls.count(name) - 1) % len(seconds)]

        return step


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "SHORTEST_TURN", 0.005)  # conftest's are shorter
    monkeypatch.setattr(timing, "WARM_UP", 3)
    monkeypatch.setattr(timing, "timer", lambda: clock.now)
    return clock


def test_contestants_take_turns_and_none_always_follows_the_same_other(clock: Clock) -> None:
    steps = [clock.step(name, [0.01]) for name in "abc"]
    timing.interleave(steps, repetitions=20)
    warm_up = 3 * timing.WARM_UP + 1  # and one turn that finds out how long a call takes
    rounds = ["".join(clock.calls[start : start + 3]) for start in range(warm_up, warm_up + 60, 3)]
    assert all(sorted(one) == list("abc") for one in rounds)
    assert set(rounds) == {"abc", "acb", "bac", "bca", "cab", "cba"}


def test_the_order_is_the_same_in_every_run(clock: Clock) -> None:
    steps = [clock.step(name, [0.01]) for name in "abc"]
    timing.interleave(steps, repetitions=9)
    first, clock.calls = clock.calls, []
    timing.interleave(steps, repetitions=9)
    assert clock.calls == first


def test_short_steps_are_called_several_times_a_turn(clock: Clock) -> None:
    timings, calls = timing.interleave([clock.step("a", [0.002]), clock.step("b", [0.003])], repetitions=2)
    assert calls == 3  # 3 x 2 ms are the first to fill 5 ms
    assert timings[1].ms_min == pytest.approx(3.0)  # per call, not per turn
    assert timings[1].ratio_p50 == pytest.approx(1.5)


def test_ratios_are_taken_within_a_repetition(clock: Clock) -> None:
    # The machine is three times slower in every other repetition: the ratio does not see it, the times do.
    seconds = [1.0] * 3 + [1.0] + [1.0, 3.0] * 5
    twice = [2.0] * 3 + [2.0, 6.0] * 5
    timings, _ = timing.interleave([clock.step("base", seconds), clock.step("other", twice)], repetitions=10)
    other = timings[1]
    assert (other.ratio_p20, other.ratio_p50, other.ratio_p80, other.ratio_min) == pytest.approx((2.0,) * 4)
    assert other.ms_p50 == pytest.approx(4000.0)
    assert other.ms_min == pytest.approx(2000.0)
