import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from melora.training.checkpoints import (
    UNFINISHED,
    all_checkpoints,
    finish_checkpoint,
    newest_good,
    rotate,
    size_of_newest,
    step_of,
)

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save(step: int, best: int | None = None) -> Path:
        new = tmp_path / UNFINISHED / f"checkpoint-{step}"
        new.mkdir(parents=True)
        (new / "weights").write_text(f"of step {step}")
        return finish_checkpoint(tmp_path, step, best)

    return save


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_is_taken_by_number(save: Save, tmp_path: Path) -> None:
    assert newest_good(tmp_path) is None
    assert newest_good(tmp_path / "nowhere") is None
    for step in (100, 20, 3):
        save(step)
    assert newest_good(tmp_path) == tmp_path / "checkpoint-100"
    assert [step_of(path) for path in all_checkpoints(tmp_path)] == [100, 20, 3]
    assert names(tmp_path) == ["checkpoint-100", "checkpoint-20", "checkpoint-3"]


def test_what_is_damaged_or_has_lost_its_best_is_skipped_with_the_reason(
    save: Save, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("melora"), "propagate", True)
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2)):
        save(step, best)
    (tmp_path / "checkpoint-4" / "weights").write_text("of")
    assert newest_good(tmp_path) == tmp_path / "checkpoint-3"
    assert caplog.messages == [f"checkpoint {tmp_path}/checkpoint-4 is skipped: weights has 2 bytes, expected 9"]
    caplog.clear()
    (tmp_path / "checkpoint-2" / "weights").unlink()
    assert newest_good(tmp_path) == tmp_path / "checkpoint-1"
    assert "checkpoint-3 is skipped: its best checkpoint so far, checkpoint-2, is damaged: weights is" in caplog.text


def test_what_was_not_finished_is_no_checkpoint(save: Save, tmp_path: Path) -> None:
    save(1)
    (tmp_path / UNFINISHED / "checkpoint-2").mkdir(parents=True)
    assert newest_good(tmp_path) == tmp_path / "checkpoint-1"
    assert len(all_checkpoints(tmp_path)) == 1


def test_a_damaged_one_is_replaced_when_its_step_is_reached_again(save: Save, tmp_path: Path) -> None:
    (save(5) / "weights").unlink()
    save(5)
    assert newest_good(tmp_path) == tmp_path / "checkpoint-5"
    assert names(tmp_path) == ["checkpoint-5"]


@pytest.mark.parametrize(
    ("limit", "left"),
    [(1, [1, 5]), (2, [1, 4, 5]), (3, [1, 3, 4, 5]), (None, [1, 2, 3, 4, 5]), (0, [1, 2, 3, 4, 5])],
)
def test_rotation_keeps_the_newest_and_their_best(
    save: Save, tmp_path: Path, limit: int | None, left: list[int]
) -> None:
    for step in range(1, 6):
        newest = save(step, 1)
    rotate(tmp_path, newest, limit)
    assert names(tmp_path) == [f"checkpoint-{step}" for step in left]


def test_rotation_counts_no_damaged_one(save: Save, tmp_path: Path) -> None:
    for step in range(1, 4):
        newest = save(step)
    (tmp_path / "checkpoint-2" / "weights").write_text("cut")
    rotate(tmp_path, newest, 2)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-3"]


def test_rotation_after_a_fall_back_keeps_the_one_just_written(save: Save, tmp_path: Path) -> None:
    for step in (1, 2, 9):
        save(step)
    rotate(tmp_path, tmp_path / "checkpoint-2", 1)
    assert names(tmp_path) == ["checkpoint-2"]


def test_the_size_of_the_newest_complete_one(save: Save, tmp_path: Path) -> None:
    assert size_of_newest(tmp_path) is None
    save(1)
    (save(12) / "weights").unlink()
    assert size_of_newest(tmp_path) == len("of step 1")


def test_the_name_of_a_checkpoint() -> None:
    assert step_of("runs/x/checkpoint-12") == 12
    with pytest.raises(ValueError, match="not the name of a checkpoint"):
        step_of("checkpoint-best")
