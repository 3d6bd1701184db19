from collections.abc import Callable
from typing import Any

import pytest

from melora.compare import estimate as module
from melora.compare.estimate import START_SECONDS, estimate
from melora.compare.jobs import cells
from melora.compare.known import Known
from melora.compare.runner import Searches, run_study
from melora.compare.study import Study, parse_study
from melora.training.recipe import Recipe
from melora.training.timed import StepTime


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was timed: (label, method). A step of mood takes 3 times one of rating, of melora twice one of lora."""
    asked: list[tuple[str, str]] = []

    def take(recipe: Recipe) -> StepTime:
        task, method = recipe.data.label, recipe.adapter["method"]
        asked.append((task, method))
        factor = (3.0 if task == "mood" else 1.0) * (2.0 if method == "melora" else 1.0)
        return StepTime(0.1 * factor, 0.01 * factor, 18 if task == "rating" else 30, 3)

    monkeypatch.setattr(module, "time_step", take)
    return asked


def test_one_step_of_each_method_and_task(
    study_values: dict[str, Any], timed: list[tuple[str, str]], nothing_known: Known
) -> None:
    study_values["tasks"]["mood"] = {"task": "classification", "data": {"label": "mood"}}
    study = parse_study(study_values)
    found = estimate(study, cells(study), Searches(study), nothing_known, lambda line: None)
    assert timed == [("rating", "lora"), ("rating", "melora"), ("mood", "lora")]
    assert [(row.task, row.method, row.runs, row.steps) for row in found] == [
        ("rating", "lora", 3, 18),
        ("rating", "melora", 3, 18),
        ("mood", "lora", 3, 30),
        ("mood", "melora", 3, 30),
    ]
    assert [row.step_seconds for row in found] == pytest.approx([0.1, 0.2, 0.3, 0.6])
    # Two epochs and the last scoring: three evaluations of three batches.
    assert found[0].seconds == pytest.approx(3 * (START_SECONDS + 18 * 0.1 + 3 * 3 * 0.01))
    assert found[3].seconds == pytest.approx(3 * (START_SECONDS + 30 * 0.6 + 3 * 3 * 0.06))


def test_only_what_is_left_is_counted(
    make_study: Callable[..., Study], timed: list[tuple[str, str]], executor: Any, nothing_known: Known
) -> None:
    study = make_study(search={"extend": 0}, seeds=[0])
    run_study(study, Searches(study), nothing_known, executor, 1, lambda line: None)
    more = make_study(search={"extend": 0}, seeds=[0, 1])
    found = estimate(more, cells(more), Searches(more), nothing_known, lambda line: None)
    assert [row.runs for row in found] == [1, 1]
