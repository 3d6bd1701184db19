import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melora.compare.study import Study, load_study, parse_study
from melora.errors import MeloraError


def test_defaults_and_own_rates(study_values: dict[str, Any]) -> None:
    study_values["methods"]["lora"]["learning_rates"] = [1e-3, 1e-4]
    del study_values["seeds"]
    study = parse_study(study_values)
    assert study.seeds == [0, 1, 2]
    assert study.rates("lora") == (1e-4, 1e-3)
    assert study.rates("melora") == (0.002, 0.02)
    assert study.report_folder == Path(study.output) / "report"


def test_the_file_with_overrides(study_file: Path) -> None:
    study = load_study(study_file, ["seeds=[5]", "search.sampler=tpe", "base.training.num_train_epochs=7"])
    assert study.seeds == [5]
    assert study.search.sampler == "tpe"
    assert study.base["training"]["num_train_epochs"] == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "dora"}, "reference: no method 'dora'; did you mean lora or melora?"),
        ({"seeds": [1, 1]}, "seeds: must name one seed or more, each once, got [1, 1]"),
        ({"seeds": []}, "seeds: must name one seed or more"),
        ({"seeds": [-1]}, "seeds: must be from 0 to 4294967295, got -1"),
        ({"learning_rates": [1e-3, 1e-3]}, "learning_rates: names a rate twice: [0.001, 0.001]"),
        ({"learning_rates": []}, "learning_rates: is empty, and method"),
        ({"learning_rates": [0.0]}, "learning_rates: must be a finite number above 0"),
        ({"learning_rate": [1e-3]}, "unknown key 'learning_rate'; did you mean learning_rates?"),
        ({"tasks": {}}, "tasks is empty"),
        ({"tasks": None}, "key 'tasks' is missing"),
        ({"tasks": {"a": {"seed": 3}}}, "tasks.a.seed: use the study's key seeds"),
        ({"base": {"output": "x"}}, "base.output: use the study's key output"),
        ({"base": {"training": {"learning_rate": 1e-3}}}, "base.training.learning_rate: every method has its own"),
        ({"base": {"modle": {}}}, "base: unknown key 'modle'; did you mean model"),
        ({"methods": {"lora": {"data": {}}}}, "methods.lora: unknown key 'data'"),
        ({"methods": {"lora": []}}, "methods.lora: must hold keys of a recipe, got []"),
        ({"methods": {"lora": {"learning_rates": "fast"}}}, "methods.lora.learning_rates: must be a list of numbers"),
        ({"search": {"sampler": "random"}}, "search.sampler: must be of type"),
        ({"search": {"trials": 0, "sampler": "tpe"}}, "search.trials: must be 1 or more, got 0"),
        ({"search": {"extend": -1}}, "search.extend: must be 0 or more, got -1"),
        ({"search": {"storage": "sqlite:///x"}}, "search.storage: is for search.sampler: tpe"),
        ({"output": " "}, "output: is empty"),
    ],
)
def test_bad_studies(make_study: Callable[..., Study], change: dict[str, Any], message: str) -> None:
    with pytest.raises(MeloraError, match=re.escape(message)):
        make_study(**change)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(MeloraError, match=r"study .*none.yaml: no such file; give the path of a YAML study"):
        load_study(tmp_path / "none.yaml")
