import json
import random

import pytest

from melora.training.losses import LossTrend, lower_rate


def trend(losses: list[float]) -> LossTrend:
    made = LossTrend()
    for loss in losses:
        made.add(loss)
    return made


def noisy(level: float, steps: int, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [level * (1 + draw.gauss(0, 0.1)) for _ in range(steps)]


def test_a_loss_that_falls_or_stays_has_not_diverged() -> None:
    for losses in (noisy(1.0, 30), noisy(1.0, 5) + noisy(0.2, 30), [0.7] * 30, [0.001] * 5 + [0.02] * 30, [], [3.0]):
        assert not trend(losses).ended_above()
        assert not trend(losses).is_far_above()


def test_a_loss_that_ends_clearly_above_its_start_has() -> None:
    assert trend(noisy(1.0, 5) + noisy(1.5, 30)).ended_above()
    assert not trend(noisy(1.0, 5) + noisy(1.5, 30)).is_far_above()
    assert trend(noisy(1.0, 5) + noisy(4.0, 30)).is_far_above()
    assert trend([1.0, 700.0, 900.0, 500.0, 700.0, *noisy(600.0, 30)]).is_far_above()
    assert not trend([1.0] * 5 + [9.0] * 10).is_far_above()  # too few steps to speak of


def test_one_bad_batch_is_no_divergence() -> None:
    assert not trend(noisy(1.0, 5) + noisy(1.0, 19) + [30.0]).ended_above()


def test_the_rise_before_the_end() -> None:
    assert trend([0.7, 0.9, 55.0]).rise() == (0.7, 55.0)
    assert trend([0.7, 0.9]).rise() is None
    assert trend([0.7]).rise() is None


def test_it_goes_on_from_its_state() -> None:
    losses = noisy(1.0, 4) + noisy(2.0, 40)
    first = trend(losses[:17])
    second = LossTrend()
    second.load(json.loads(json.dumps(first.state())))
    for loss in losses[17:]:
        second.add(loss)
    whole = trend(losses)
    assert (second.start, second.end) == (whole.start, whole.end)
    assert whole.end == pytest.approx(sum(losses[-20:]) / 20)


def test_the_rate_to_try() -> None:
    assert lower_rate(0.02) == "the learning rate 0.02 diverged; try training.learning_rate=0.002"
