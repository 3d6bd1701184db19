import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from melora import MeloraError
from melora.training.checkpoints import UNFINISHED, finish_checkpoint
from melora.training.folder import METRICS, RECIPE, RunFolder
from melora.training.recipe import Recipe

Make = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def every_lock_is_released(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As at the end of the process that made the folder."""
    made: list[RunFolder] = []
    create = RunFolder.create

    def noted(self: RunFolder) -> None:
        made.append(self)
        create(self)

    monkeypatch.setattr(RunFolder, "create", noted)
    yield
    for folder in made:
        folder.release()


def checkpoint(partial: Path, step: int, events: int) -> None:
    """A checkpoint as far as the folder looks at it, with this many events in its history."""
    new = partial / "checkpoints" / UNFINISHED / f"checkpoint-{step}"
    new.mkdir(parents=True)
    history = [{"step": index, "loss": index / 2} for index in range(events)]
    (new / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    finish_checkpoint(partial / "checkpoints", step, None)


@pytest.fixture
def folder(make_recipe: Make) -> RunFolder:
    """A run that was begun and has one checkpoint, of step 4 with 3 events; its process is gone."""
    folder = RunFolder(make_recipe())
    folder.create()
    checkpoint(folder.partial, 4, 3)
    folder.release()
    return folder


def events(partial: Path) -> list[tuple[int, float]]:
    lines = (partial / METRICS).read_text().splitlines()
    return [(json.loads(line)["step"], json.loads(line)["loss"]) for line in lines]


LINE = '{"step": %d, "seconds": 1.0, "loss": %.1f}\n'
KEPT = [(0, 0.0), (1, 0.5), (2, 1.0)]


@pytest.mark.parametrize(
    "after",
    ["", LINE % (4, 7), LINE % (5, 7) + '{"step": 6, "lo', '{"step": 5', "\x00\x00\x00", LINE % (4, 7) + "null\n"],
)
def test_the_log_is_cut_to_what_the_checkpoint_knows(folder: RunFolder, make_recipe: Make, after: str) -> None:
    text = "".join(LINE % event for event in KEPT) + after
    (folder.partial / METRICS).write_text(text)
    RunFolder(make_recipe(), resume=True).create()
    assert events(folder.partial) == KEPT


@pytest.mark.parametrize("there", [None, "", LINE % (0, 0), LINE % (0, 0) + '{"step": 1, "lo'])
def test_lines_that_a_power_cut_took_come_back_from_the_checkpoint(
    folder: RunFolder, make_recipe: Make, there: str | None
) -> None:
    if there is not None:
        (folder.partial / METRICS).write_text(there)
    RunFolder(make_recipe(), resume=True).create()
    assert events(folder.partial) == KEPT


def test_only_one_process_makes_a_run(make_recipe: Make) -> None:
    first = RunFolder(make_recipe())
    first.create()
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(MeloraError, match=r"another process is making this run in .*run\.partial; wait for it"):
            RunFolder(make_recipe(), **options)
    first.release()
    assert RunFolder(make_recipe(), resume=True).checkpoint is None


def test_two_that_start_at_once(make_recipe: Make, folder: RunFolder) -> None:
    one, other = RunFolder(make_recipe(), resume=True), RunFolder(make_recipe(), resume=True)
    one.create()
    with pytest.raises(MeloraError, match="another process is making this run"):
        other.create()
    new = [RunFolder(make_recipe(output=str(folder.final) + "-2")) for _ in range(2)]
    new[0].create()
    with pytest.raises(MeloraError, match="another process is making this run"):
        new[1].create()


def test_a_run_killed_in_its_first_moment_can_be_resumed(make_recipe: Make) -> None:
    folder = RunFolder(make_recipe())
    folder.partial.mkdir()
    with pytest.raises(MeloraError, match="is interrupted; go on with --resume"):
        RunFolder(make_recipe())
    again = RunFolder(make_recipe(), resume=True)
    again.create()
    assert (again.partial / RECIPE).is_file()


@pytest.mark.parametrize("moved", [True, False])
def test_an_interrupted_run_goes_on_wherever_it_lies_and_however_that_is_written(
    folder: RunFolder, make_recipe: Make, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    monkeypatch.chdir(folder.final.parent)
    name = "elsewhere" if moved else "run"
    folder.partial.rename(f"{name}.partial")
    recipe = make_recipe(output=name)  # it was an absolute path
    again = RunFolder(recipe, resume=True)
    assert again.checkpoint == Path(f"{name}.partial/checkpoints/checkpoint-4")
    again.create()
    again.finish()
    assert Path(name, RECIPE).read_text() == recipe.to_yaml()


def test_nothing_to_resume(make_recipe: Make) -> None:
    with pytest.raises(MeloraError, match=r"no interrupted run in .*run\.partial to resume; start without --resume"):
        RunFolder(make_recipe(), resume=True)


def finished(folder: RunFolder, text: str) -> None:
    folder.final.mkdir()
    (folder.final / RECIPE).write_text(text)


def test_a_resumed_run_replaces_a_finished_one_only_when_told(folder: RunFolder, make_recipe: Make) -> None:
    finished(folder, "old")
    with pytest.raises(MeloraError, match=r"pass --overwrite \(with --resume too, to go on with the run that replaces"):
        RunFolder(make_recipe(), resume=True)
    both = RunFolder(make_recipe(), resume=True, overwrite=True)
    assert both.checkpoint == folder.partial / "checkpoints" / "checkpoint-4"
    both.create()
    both.finish()
    assert (folder.final / RECIPE).read_text() == make_recipe().to_yaml()
    assert {path.name for path in folder.final.parent.iterdir()} >= {"run"}
    assert not list(folder.final.parent.glob("*run.*"))


def test_a_kill_between_the_two_renames_leaves_what_resume_finishes(
    folder: RunFolder, make_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(folder, "old")
    both = RunFolder(make_recipe(), resume=True, overwrite=True)
    both.create()
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self == folder.partial:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        both.finish()
    both.release()
    monkeypatch.setattr(Path, "rename", rename)
    assert not folder.final.exists()
    again = RunFolder(make_recipe(), resume=True)
    again.create()
    again.finish()
    assert (folder.final / RECIPE).read_text() == make_recipe().to_yaml()
    assert not list(folder.final.parent.glob("*run.*"))


def test_a_failure_keeps_a_run_that_has_checkpoints_even_damaged_ones(folder: RunFolder) -> None:
    assert folder.abandon() == folder.partial / "checkpoints" / "checkpoint-4"
    (folder.partial / "checkpoints" / "checkpoint-4" / "trainer_state.json").unlink()
    assert folder.abandon() is None
    assert folder.partial.exists()
