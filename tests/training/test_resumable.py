"""Runs that are interrupted, damaged and resumed; kills at drawn moments are in test_killed.py."""

import json
import logging
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from melora import MeloraError
from melora.training.checkpoints import UNFINISHED
from melora.training.failures import Stopped, TrainingError
from melora.training.folder import RunFolder
from melora.training.manifest import MANIFEST, verify
from melora.training.recipe import Recipe, parse_recipe
from melora.training.run import train
from melora.training.signals import StopRequest
from melora.training.trainer import AdapterTrainer

TIMES = ("seconds", "runtime", "per_second")
# Logged every 4 steps and saved every 6: an interruption falls between a checkpoint and the next entry of the log.
TRAINING = {"num_train_epochs": 2, "eval_strategy": "steps", "eval_steps": 6, "logging_steps": 4}
Damage = Callable[[Path], None]


class At(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self.step, self.act = step, act

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.act()


def interrupt() -> None:
    raise KeyboardInterrupt


def train_with(recipe: Recipe, *callbacks: TrainerCallback, **options: Any) -> Path:
    original = AdapterTrainer.__init__

    def init(self: AdapterTrainer, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        for callback in callbacks:
            self.add_callback(callback)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdapterTrainer, "__init__", init)
        return train(recipe, **options).path


def content(run: Path) -> tuple[list[dict[str, Any]], bytes]:
    """The log without times, and the adapter."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    log = [{key: value for key, value in event.items() if not key.endswith(TIMES)} for event in events]
    return log, (run / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def alone(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, Path]:
    """A recipe, its run left alone, and the partial folder of one interrupted at step 20, after checkpoint 18."""
    folder = tmp_path_factory.mktemp("alone")
    adapter = {"method": "melora", "r": 1, "n": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}
    data = {name: str(tiny_data / f"{name}.parquet") for name in ("train", "validation")}
    values = {
        "model": {"name_or_path": str(tiny_model)},
        "task": "regression",
        "data": {**data, "label": "rating", "max_length": 16},
        "adapter": adapter,
        "training": {**TRAINING, "learning_rate": 0.02, "per_device_train_batch_size": 8, "use_cpu": True},
        "output": str(folder / "run"),
    }
    recipe = parse_recipe(values)
    whole = train(recipe).path
    cut = parse_recipe({**values, "output": str(folder / "cut")})
    with pytest.raises(KeyboardInterrupt):
        train_with(cut, At(20, interrupt))
    return recipe, whole, folder / "cut.partial"


@pytest.fixture
def interrupted(alone: tuple[Recipe, Path, Path], tmp_path: Path) -> tuple[Recipe, Path]:
    """The interrupted run's partial folder, copied to where no run was, and a recipe with that output."""
    recipe = parse_recipe({**alone[0].to_dict(), "output": str(tmp_path / "run")})
    partial = shutil.copytree(alone[2], tmp_path / "run.partial")
    return recipe, partial


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("melora"), "propagate", True)
    return caplog


def skipped(told: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in told.messages if "is skipped" in text]


def newest(partial: Path) -> Path:
    return partial / "checkpoints" / "checkpoint-18"


def test_two_checkpoints_and_the_best_are_kept_and_verify(alone: tuple[Recipe, Path, Path]) -> None:
    _, whole, partial = alone
    for folder, last in ((partial, 18), (whole, 24)):
        checkpoints = folder / "checkpoints"
        names = {path.name for path in checkpoints.iterdir()}
        assert {f"checkpoint-{last}", f"checkpoint-{last - 6}"} <= names
        assert UNFINISHED not in names
        bests = {f"checkpoint-{verify(checkpoints / name)['best_step']}" for name in names}
        assert bests <= names


def test_a_resumed_run_ends_as_the_one_left_alone(
    alone: tuple[Recipe, Path, Path], interrupted: tuple[Recipe, Path], told: pytest.LogCaptureFixture
) -> None:
    recipe, partial = interrupted
    # What kills leave: a save that was not finished, and a line of the log that was not.
    shutil.copytree(newest(partial), partial / "checkpoints" / UNFINISHED / "checkpoint-24")
    with (partial / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "loss": 0.8')
    run = train(recipe, resume=True)
    assert content(run.path) == content(alone[1])
    assert not skipped(told)
    assert run.results["resumed"]
    results = [json.loads((path / "results.json").read_text()) for path in (run.path, alone[1])]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["train_loss"] == results[1]["train_loss"]
    assert run.results["train_seconds"] > 0
    assert not (run.path / "checkpoints" / UNFINISHED).exists()


def test_every_truncation_of_every_file_is_found_and_told(
    interrupted: tuple[Recipe, Path], told: pytest.LogCaptureFixture
) -> None:
    recipe, partial = interrupted
    files = [path for path in newest(partial).rglob("*") if path.is_file()]
    assert {"optimizer.pt", "rng_state.pth", "trainer_state.json", MANIFEST} <= {path.name for path in files}
    for file in files:
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        for damaged in (b"", whole[:1], whole[: len(whole) // 2], whole[:-1], bytes(flipped), None):
            if damaged is None:
                file.unlink()
            else:
                file.write_bytes(damaged)
            told.clear()
            folder = RunFolder(recipe, resume=True)
            assert folder.checkpoint == partial / "checkpoints" / "checkpoint-12", (file, damaged)
            (warning,) = skipped(told)
            assert warning.startswith(f"checkpoint {newest(partial)} is skipped: {file.relative_to(newest(partial))} ")
            file.write_bytes(whole)
    told.clear()
    assert RunFolder(recipe, resume=True).checkpoint == newest(partial)


def cut(file: str, share: float) -> Damage:
    def damage(checkpoint: Path) -> None:
        whole = (checkpoint / file).read_bytes()
        (checkpoint / file).write_bytes(whole[: int(share * len(whole))])

    return damage


DAMAGES: list[tuple[str, Damage]] = [
    ("optimizer.pt has", cut("optimizer.pt", 0.5)),
    ("adapter_model.safetensors has 0 bytes", cut("adapter_model.safetensors", 0)),
    ("manifest.json is missing", lambda checkpoint: (checkpoint / MANIFEST).unlink()),
]


@pytest.mark.parametrize(("reason", "damage"), DAMAGES, ids=[reason for reason, _ in DAMAGES])
def test_a_run_that_falls_back_ends_as_the_one_left_alone(
    alone: tuple[Recipe, Path, Path],
    interrupted: tuple[Recipe, Path],
    told: pytest.LogCaptureFixture,
    reason: str,
    damage: Damage,
) -> None:
    recipe, partial = interrupted
    damage(newest(partial))
    run = train(recipe, resume=True)
    (warning,) = skipped(told)
    assert reason in warning
    assert content(run.path) == content(alone[1])
    assert all(verify(path) for path in (run.path / "checkpoints").iterdir())


def test_without_any_good_checkpoint_there_is_a_way_out(interrupted: tuple[Recipe, Path]) -> None:
    recipe, partial = interrupted
    for checkpoint in (partial / "checkpoints").iterdir():
        (checkpoint / "trainer_state.json").unlink()
    with pytest.raises(MeloraError, match=r"no checkpoint in .* is as it was written, .* again with --overwrite"):
        RunFolder(recipe, resume=True)
    assert RunFolder(recipe, overwrite=True).checkpoint is None


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    alone: tuple[Recipe, Path, Path], interrupted: tuple[Recipe, Path]
) -> None:
    recipe, partial = interrupted
    shutil.rmtree(partial / "checkpoints")
    assert content(train(recipe, resume=True).path) == content(alone[1])


def test_a_run_folder_that_was_moved_goes_on(
    alone: tuple[Recipe, Path, Path], interrupted: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The best checkpoint's path, which the Trainer keeps, is not there any more."""
    recipe, partial = interrupted
    (tmp_path / "elsewhere").mkdir()
    moved = parse_recipe({**recipe.to_dict(), "output": "run"})
    partial.rename(tmp_path / "elsewhere" / "run.partial")
    (tmp_path / "elsewhere" / "run.partial" / "recipe.yaml").write_text(moved.to_yaml())
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert content(train(moved, resume=True).path) == content(alone[1])


@pytest.mark.parametrize("limit", [4_000, 12_000])
def test_a_full_disk_stops_the_run_and_the_checkpoint_before_stands(
    alone: tuple[Recipe, Path, Path], tmp_path: Path, limit: int
) -> None:
    """The kernel refuses every write beyond a file size: the limits hit different files of a checkpoint."""
    recipe = parse_recipe({**alone[0].to_dict(), "output": str(tmp_path / "run")})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    fill = At(13, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard)))
    try:
        with pytest.raises(
            TrainingError, match=r"the checkpoint of step 18 can't be written to .*\(\d[\d,.]* MB are"
        ) as caught:
            train_with(recipe, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    checkpoints = tmp_path / "run.partial" / "checkpoints"
    assert f"make room and go on with --resume; the last good checkpoint is {checkpoints}/checkpoint-12" in str(
        caught.value
    )
    assert {path.name for path in checkpoints.iterdir()} <= {"checkpoint-6", "checkpoint-12"}
    assert content(train(recipe, resume=True).path) == content(alone[1])


@pytest.mark.parametrize("step", [9, 12])
def test_a_request_to_stop_saves_and_the_run_goes_on_to_the_same_end(
    alone: tuple[Recipe, Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: int
) -> None:
    """In the middle of an epoch, and at the end of one, where an evaluation is due before the save."""
    values = alone[0].to_dict()
    by_epoch = {key: value for key, value in values["training"].items() if key != "eval_steps"}
    by_epoch |= {"eval_strategy": "epoch"} if step == 12 else {"eval_strategy": "steps", "eval_steps": 6}
    recipe = parse_recipe({**values, "training": by_epoch, "output": str(tmp_path / "run")})
    asked: list[StopRequest] = []
    enter = StopRequest.__enter__

    def entered(self: StopRequest) -> StopRequest:
        asked.append(self)
        return enter(self)

    monkeypatch.setattr(StopRequest, "__enter__", entered)
    with pytest.raises(Stopped) as caught:
        train_with(recipe, At(step - 1, lambda: setattr(asked[0], "received", True)))
    # The callbacks of a test come after the trainer's own, which sees the request one step later.
    assert caught.value.step == step
    assert caught.value.code == 143
    assert verify(tmp_path / "run.partial" / "checkpoints" / f"checkpoint-{step}")["step"] == step
    resumed = train(recipe, resume=True).path
    alike = alone[1] if step == 9 else train(parse_recipe({**recipe.to_dict(), "output": str(tmp_path / "other")})).path
    assert content(resumed) == content(alike)


def test_a_run_that_stops_at_max_steps_takes_no_further_step(alone: tuple[Recipe, Path, Path], tmp_path: Path) -> None:
    """Its training had finished, within an epoch, when it was killed."""
    values = alone[0].to_dict()
    values["training"] = {**values["training"], "max_steps": 18}
    whole = train(parse_recipe({**values, "output": str(tmp_path / "whole")})).path
    recipe = parse_recipe({**values, "output": str(tmp_path / "run")})

    class AtEnd(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_with(recipe, AtEnd())
    run = train(recipe, resume=True)
    assert run.results["steps"] == 18
    assert content(run.path) == content(whole)
