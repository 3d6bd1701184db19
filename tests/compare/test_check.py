import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melora.compare.check import check_folders, check_study
from melora.compare.jobs import cells
from melora.compare.study import Study, parse_study
from melora.errors import MeloraError


def test_a_good_study_leaves_nothing_behind(make_study: Callable[..., Study], tmp_path: Path) -> None:
    study = make_study()
    check_study(study, cells(study))
    assert not Path(study.output).exists()
    assert list(tmp_path.iterdir()) == []


def _message(values: dict[str, Any]) -> str:
    study = parse_study(values)
    with pytest.raises(MeloraError) as caught:
        check_study(study, cells(study))
    return str(caught.value)


def test_n_auto_is_checked_on_shapes(study_values: dict[str, Any]) -> None:
    method = study_values["methods"]["melora"]
    method["adapter"]["n"] = "auto"
    study = parse_study(study_values)
    check_study(study, cells(study))
    method["adapter_search"] = {"budget": 100}
    assert "task rating, method melora: budget=100 is below 256, what r=1 takes" in _message(study_values)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            {"method": "melora", "n": 5},
            "task rating, method melora: bert.encoder.layer.0.attention.self.query: n=5",
        ),
        ({"method": "loro"}, "task rating, method melora: adapter.method: unknown method 'loro'; did you mean lor"),
        ({"method": "lora", "r": 4096}, "task rating, method melora: adapter.r: 4096 is above 64"),
        ({"method": "melora", "ranks": 5}, "task rating, method melora: adapter: unknown key 'ranks'"),
    ],
)
def test_a_method_that_the_model_can_not_take(
    study_values: dict[str, Any], adapter: dict[str, Any], message: str
) -> None:
    study_values["methods"]["melora"]["adapter"] = adapter
    found = _message(study_values)
    assert message in found
    assert "\n" not in found


def test_a_wrong_training_key_of_one_method(study_values: dict[str, Any]) -> None:
    study_values["methods"]["melora"]["training"] = {"num_epochs": 3}
    assert _message(study_values).startswith("task rating, method melora: training: unknown key 'num_epochs'")


def test_a_ratio_of_rates_is_a_methods_own(study_values: dict[str, Any]) -> None:
    study_values["methods"]["melora"]["loraplus_lr_ratio"] = 0.25
    study = parse_study(study_values)
    check_study(study, cells(study))
    ratios = {
        cell.method: cell.job({"training.learning_rate": 0.1}, 0).recipe.loraplus_lr_ratio for cell in cells(study)
    }
    assert ratios == {"lora": 1.0, "melora": 0.25}
    study_values["methods"]["melora"]["adapter"] = {"method": "bias"}
    assert _message(study_values).startswith("task rating, method melora: loraplus_lr_ratio: is the rate of B over A's")


def test_without_an_untouched_split(study_values: dict[str, Any]) -> None:
    study_values["base"]["data"]["validation"] = "gone.parquet"
    assert re.match(r"task rating, method lora: .*gone\.parquet", _message(study_values))


def test_a_repeated_run_comes_before_any_model(study_values: dict[str, Any]) -> None:
    study_values["methods"]["again"] = study_values["methods"]["lora"]
    study_values["base"]["model"]["name_or_path"] = "no/such/model"
    assert "are the same run" in _message(study_values)


def test_a_full_disk(study_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("melora.compare.check.free_disk", lambda output: 1000)
    assert re.search(
        r"output .*study: 1,000 bytes are free on its disk, and the runs take up to [\d,]+;", _message(study_values)
    )


def test_the_disk_bears_what_runs_and_what_is_kept(make_study: Callable[..., Study]) -> None:
    study = make_study()
    one, two, both = (
        check_study(study, cells(study), runs=runs, parallel=parallel) for runs, parallel in ((1, 1), (2, 1), (2, 2))
    )
    assert both == 2 * one
    assert one < two < both


@pytest.mark.parametrize("key", ["output", "report"])
@pytest.mark.parametrize("place", ["file", "file/study"])
def test_a_folder_that_is_none(make_study: Callable[..., Study], tmp_path: Path, key: str, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MeloraError, match=f"{key} .*{place}: .*file is no folder; choose another {key}"):
        check_folders(make_study(**{key: str(tmp_path / place)}))


def test_a_folder_that_takes_no_file(
    make_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("os.access", lambda place, mode: False)
    with pytest.raises(MeloraError, match=f"output .*: {tmp_path} can't be written to; choose another output"):
        check_folders(make_study())


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"adapter.ranks": [1, 2]}, "search.space with adapter.ranks=1: adapter: unknown key 'ranks'"),
        ({"adapter.n": [2, 5]}, "search.space with adapter.n=5: bert.encoder.layer.0.attention.self.query: n=5"),
        ({"adapter.lora_alpha": ["a", "b"]}, "search.space with adapter.lora_alpha=a: adapter.lora_alpha: must be"),
        ({"training.weight_decay": {"low": -1.0, "high": 0.1}}, "search.space with training.weight_decay=-1.0: "),
    ],
)
def test_a_space_is_tried_at_its_ends(study_values: dict[str, Any], space: dict[str, Any], told: str) -> None:
    study_values["search"] = {"sampler": "tpe", "space": space}
    study_values["methods"] = {"melora": study_values["methods"]["melora"]}
    study_values["reference"] = "melora"
    assert f"task rating, method melora, {told}" in _message(study_values)
