import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melora.compare.jobs import Cell, Job
from melora.compare.process import Halt
from melora.compare.space import RATE
from melora.compare.study import Study
from melora.compare.tpe import TpeSearch, open_storage
from melora.errors import MeloraError


@pytest.fixture
def make_search(make_study: Callable[..., Study], tmp_path: Path) -> Callable[..., TpeSearch]:
    """A search for lora's rate, on the storage in tmp_path/study."""
    (tmp_path / "study").mkdir()

    def build(**search: Any) -> TpeSearch:
        study = make_study(search={"sampler": "tpe", "trials": 6, **search})
        return TpeSearch(Cell(study, "rating", "lora"), open_storage(study))

    return build


def test_it_makes_the_trials_and_remembers_them(make_search: Callable[..., TpeSearch]) -> None:
    search = make_search()
    asked: list[Job] = []

    def score(job: Job) -> float:
        asked.append(job)
        return -abs(job.rate - 0.004)

    assert (search.left(), search.jobs()) == (6, [])
    search.go(score, parallel=1)
    assert [job.run for job in search.jobs()] == [job.run for job in asked]
    assert len(asked) == 6
    assert all(0.002 <= job.rate <= 0.02 for job in asked)
    assert search.left() == 0

    again = make_search()
    again.go(score, parallel=1)
    assert len(asked) == 6
    more = make_search(trials=8)
    assert more.left() == 2
    more.go(score, parallel=1)
    assert len(asked) == 8
    assert len({job.run for job in asked}) == 8  # none is what was drawn first, once more


def test_machines_that_share_a_database_draw_apart(
    make_search: Callable[..., TpeSearch], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = make_search()
    seeds = []
    for machine in ("one", "two"):
        monkeypatch.setattr("socket.gethostname", lambda name=machine: name)
        monkeypatch.setattr(search.cell.study.search, "storage", "postgresql://somewhere/x")
        seeds.append(search._seed())
    assert seeds[0] != seeds[1]
    monkeypatch.setattr(search.cell.study.search, "storage", None)
    assert search._seed() == 0


def test_it_looks_where_scores_are_good(make_search: Callable[..., TpeSearch]) -> None:
    search = make_search(trials=40)
    search.go(lambda job: -((job.rate - 0.004) ** 2), parallel=1)
    late = [job.rate for job in search.jobs()][20:]
    # Uniform draws in the logarithm would put a quarter of them there.
    assert sum(0.003 < rate < 0.0053 for rate in late) > len(late) / 2


def test_a_failed_run_is_a_bad_setting_and_not_tried_for_ever(make_search: Callable[..., TpeSearch]) -> None:
    search = make_search()
    search.go(lambda job: None, parallel=1)
    assert search.left() == 0
    assert len(search.jobs()) == 6


def test_a_halted_setting_is_tried_again(make_search: Callable[..., TpeSearch]) -> None:
    tried: list[float] = []

    def note(job: Job) -> float:
        tried.append(job.rate)
        return 0.0

    def halt(job: Job) -> float:
        tried.append(job.rate)
        raise Halt

    search = make_search()
    with pytest.raises(Halt):
        search.go(halt, parallel=1)
    assert search.left() == 6
    again = make_search()
    again.go(note, parallel=1)
    assert tried[1] == tried[0]
    assert len(tried) == 7


def test_settings_beyond_the_rate(make_search: Callable[..., TpeSearch]) -> None:
    space = {
        "adapter.r": [2, 4],
        RATE: {"low": 1e-3, "high": 1e-2, "log": True},
        "adapter.lora_alpha": {"low": 1, "high": 9},
    }
    search = make_search(space=space)
    search.go(lambda job: 0.0, parallel=1)
    for job in search.jobs():
        assert job.recipe.adapter["r"] in (2, 4)
        assert job.recipe.adapter["lora_alpha"] in range(1, 10)
        assert 1e-3 <= job.recipe.training["learning_rate"] <= 1e-2


def test_another_space_is_another_search(make_search: Callable[..., TpeSearch]) -> None:
    make_search().go(lambda job: 0.0, parallel=1)
    assert make_search(space={"adapter.r": [2, 4]}).left() == 6


@pytest.mark.parametrize("url", ["postgresql://me:secret@127.0.0.1:1/x", "sqlite:////no/such/folder/x.db", "nonsense"])
def test_a_storage_that_can_not_be_opened(make_study: Callable[..., Study], url: str) -> None:
    study = make_study(search={"sampler": "tpe", "storage": url})
    shown = re.escape(url.rsplit("@", 1)[-1])
    with pytest.raises(MeloraError, match=f"search.storage: {shown} can't be opened") as caught:
        open_storage(study)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_look_at_a_file_that_is_not_there_makes_none(make_study: Callable[..., Study], tmp_path: Path) -> None:
    study = make_study(search={"sampler": "tpe", "storage": f"sqlite:///{tmp_path}/search.db"})
    open_storage(study, make=False)
    assert not (tmp_path / "search.db").exists()
    open_storage(study)
    assert (tmp_path / "search.db").exists()
