import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melora import MeloraError
from melora.training import timed
from melora.training.recipe import Recipe, parse_recipe
from melora.training.timed import StepTime, time_step


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The trainers that the trials build."""
    trainers: list[Any] = []
    original = timed.build_trainer

    def build(*args: Any, **kwargs: Any) -> Any:
        trainers.append(original(*args, **kwargs))
        return trainers[-1]

    monkeypatch.setattr(timed, "build_trainer", build)
    return trainers


def check(found: StepTime, steps: int, batches: int) -> None:
    assert found.step_seconds > 0
    assert found.evaluation_seconds > 0
    assert (found.steps, found.evaluation_batches) == (steps, batches)


def test_a_trial_tells_what_the_run_will_take(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(training={"per_device_eval_batch_size": 10})
    check(time_step(recipe), steps=36, batches=4)  # 96 rows by 8, three epochs; 32 by 10


def test_a_trial_writes_nothing(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    time_step(make_recipe(training={"eval_steps": 2, "eval_strategy": "steps", "report_to": "tensorboard"}))
    assert set(tmp_path.rglob("*")) == before


def test_it_takes_the_rows_of_median_length_and_one_step_more_than_it_times(
    make_recipe: Callable[..., Recipe], seen: list[Any]
) -> None:
    time_step(make_recipe(training={"gradient_accumulation_steps": 2}), steps=3)
    assert seen[0].state.global_step == 4
    rows = [len(row["input_ids"]) for row in seen[0].train_dataset]
    whole = sorted(len(row["input_ids"]) for row in timed.prepare(make_recipe()).train)
    assert rows == whole[40:56]


def test_fewer_rows_than_a_batch(make_recipe: Callable[..., Recipe]) -> None:
    check(time_step(make_recipe(data={"max_train_rows": 5, "max_validation_rows": 3})), steps=3, batches=1)


@pytest.mark.parametrize("method", ["head", "full"])
def test_methods_without_an_adapter(plain_values: Callable[[str], dict[str, Any]], method: str) -> None:
    check(time_step(parse_recipe(plain_values(method))), steps=36, batches=1)


def test_no_steps(make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(MeloraError, match="steps: must be 1 or more, got 0"):
        time_step(make_recipe(), steps=0)


def test_bad_input_is_told_as_by_the_run(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    shutil.copyfile(__file__, tmp_path / "train.parquet")
    with pytest.raises(MeloraError, match="train"):
        time_step(make_recipe(data={"train": str(tmp_path / "train.parquet")}))
