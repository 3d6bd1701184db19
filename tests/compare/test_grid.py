import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from melora.compare.choose import best_setting
from melora.compare.grid import grid_jobs
from melora.compare.jobs import Cell, Job
from melora.compare.known import Known
from melora.compare.space import RATE
from melora.compare.study import Study


class Told(Known):
    """Knows the scores of some rates, and the losses of some; a rate whose score is None failed."""

    scores: Mapping[float, float | None]
    losses: Mapping[float, float]

    def __init__(self, scores: Mapping[float, float | None], losses: Mapping[float, float] | None = None) -> None:
        super().__init__({})
        object.__setattr__(self, "scores", scores)
        object.__setattr__(self, "losses", losses or {})

    def needs(self, job: Job, *, score: bool) -> bool:
        return job.rate not in self.scores

    def validation_score(self, job: Job) -> float | None:
        return self.scores.get(job.rate)

    def validation_loss(self, job: Job) -> float:
        return self.losses.get(job.rate, math.inf)


@pytest.fixture
def cell(make_study: Callable[..., Study]) -> Cell:
    return Cell(make_study(learning_rates=[1e-3, 3e-3, 1e-2]), "rating", "lora")


def _rates(cell: Cell, scores: Mapping[float, float | None]) -> list[float]:
    return [job.rate for job in grid_jobs(cell, Told(scores))]


def test_before_all_are_over_the_grid_is_the_studys(cell: Cell) -> None:
    assert _rates(cell, {}) == [1e-3, 3e-3, 1e-2]
    assert _rates(cell, {1e-3: 0.9, 3e-3: 0.8}) == [1e-3, 3e-3, 1e-2]


def test_a_best_rate_inside_ends_the_search(cell: Cell) -> None:
    assert _rates(cell, {1e-3: 0.8, 3e-3: 0.9, 1e-2: 0.7}) == [1e-3, 3e-3, 1e-2]


def test_an_end_that_is_best_moves_out_twice_at_most(cell: Cell) -> None:
    scores: dict[float, float | None] = {1e-3: 0.9, 3e-3: 0.8, 1e-2: 0.7}
    assert _rates(cell, scores) == [3.3e-4, 1e-3, 3e-3, 1e-2]
    scores[3.3e-4] = 0.95
    assert _rates(cell, scores) == [1.1e-4, 3.3e-4, 1e-3, 3e-3, 1e-2]
    scores[1.1e-4] = 0.99
    assert _rates(cell, scores) == [1.1e-4, 3.3e-4, 1e-3, 3e-3, 1e-2]
    assert _rates(cell, {1e-3: 0.7, 3e-3: 0.8, 1e-2: 0.9}) == [1e-3, 3e-3, 1e-2, 3.3e-2]


def test_a_failed_end_is_no_best_one(cell: Cell) -> None:
    assert _rates(cell, {1e-3: 0.8, 3e-3: 0.9, 1e-2: None}) == [1e-3, 3e-3, 1e-2]
    assert _rates(cell, {1e-3: None, 3e-3: None, 1e-2: None}) == [1e-3, 3e-3, 1e-2]


def test_nothing_grows_with_extend_0_or_a_single_rate(make_study: Callable[..., Study]) -> None:
    fixed = make_study(learning_rates=[1e-3, 3e-3], search={"extend": 0})
    assert _rates(Cell(fixed, "rating", "lora"), {1e-3: 0.9, 3e-3: 0.8}) == [1e-3, 3e-3]
    assert _rates(Cell(make_study(learning_rates=[1e-3]), "rating", "lora"), {1e-3: 0.9}) == [1e-3]


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({1e-3: 0.8, 3e-3: 0.9, 1e-2: 0.7}, 3e-3),
        ({1e-3: 0.9, 3e-3: 0.9, 1e-2: 0.7}, 1e-3),  # equals, and no loss is known: the lower rate
        ({1e-3: float("nan"), 3e-3: 0.1, 1e-2: None}, 3e-3),
        ({1e-3: float("nan"), 3e-3: None, 1e-2: None}, None),
    ],
)
def test_the_best_setting(cell: Cell, scores: dict[float, Any], best: float | None) -> None:
    jobs = [cell.job({RATE: rate}, 0) for rate in (1e-3, 3e-3, 1e-2)]
    assert best_setting(jobs, Told(scores)) == (None if best is None else {RATE: best})


def test_of_equal_scores_the_lower_loss_is_best(cell: Cell) -> None:
    """As where every rate answers with one class: the loss still tells which of them learned."""
    scores: dict[float, float | None] = {1e-3: 0.0, 3e-3: 0.0, 1e-2: 0.0}
    jobs = [cell.job({RATE: rate}, 0) for rate in scores]
    told = Told(scores, {1e-3: 0.59, 3e-3: 0.57, 1e-2: 0.58})
    assert best_setting(jobs, told) == {RATE: 3e-3}
    assert [job.rate for job in grid_jobs(cell, told)] == [1e-3, 3e-3, 1e-2]  # and no end is, so that none moves out
    assert best_setting(jobs, Told({**scores, 1e-2: 0.1}, told.losses)) == {RATE: 1e-2}


def test_the_best_setting_where_less_is_better(cell: Cell) -> None:
    jobs = [cell.job({RATE: rate}, 0) for rate in (1e-3, 3e-3)]
    lower = [replace(job, recipe=replace(job.recipe, task="causal-lm")) for job in jobs]
    assert best_setting(lower, Told({1e-3: 2.0, 3e-3: 1.5})) == {RATE: 3e-3}
