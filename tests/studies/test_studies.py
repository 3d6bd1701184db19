"""Every study in studies/ is right in all that can be checked here: with its data and model, where they are at hand."""

import importlib.util
from pathlib import Path

import pytest

from melora.compare.check import check_study
from melora.compare.jobs import cells, check_distinct
from melora.compare.space import RATE
from melora.compare.study import load_study
from melora.training.adapter import adapter_config
from melora.training.arguments import check_training
from melora.training.places import is_at_hand
from melora.training.tasks import task_class

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "studies").glob("*.yaml"))


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_the_study_is_right(file: Path) -> None:
    study = load_study(file)
    jobs = [cell.job({RATE: study.rates(cell.method)[0]}, study.seeds[0]) for cell in cells(study)]
    check_distinct(jobs)
    for job in jobs:
        task = task_class(job.recipe.task)
        adapter_config(job.recipe.adapter, task.peft_type)
        check_training(job.recipe.training, task)
    # A verdict on methods needs seeds; where only rates are looked for, the description owns up to one.
    assert len(study.seeds) >= 3 or "one seed" in study.description
    assert all(len(study.rates(method)) >= 3 for method in study.methods)
    assert len(" ".join(study.description.split())) > 100


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_the_study_can_be_run(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    study = load_study(file, [f"output={tmp_path / 'study'}"])
    for cell in cells(study):
        recipe = cell.job({RATE: 1e-3}, 0).recipe
        if not _model_is_at_hand(recipe.model.name_or_path):
            pytest.skip(f"the model {recipe.model.name_or_path} is not at hand")
        if not is_at_hand(recipe.data):
            pytest.skip(f"{recipe.data.path or recipe.data.train} is not at hand")
    check_study(study, cells(study))


def _model_is_at_hand(name: str) -> bool:
    """A folder, or a package."""
    return Path(name).is_dir() or (name.isidentifier() and importlib.util.find_spec(name) is not None)
