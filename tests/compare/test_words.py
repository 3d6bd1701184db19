from collections.abc import Callable
from typing import Any

import pytest

from melora.compare.study import Study, parse_study
from melora.compare.words import about


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ({}, "The epoch of every run was chosen on the held-out rows."),
        ({"eval_strategy": "no"}, "No epoch was chosen: every run counts as it was after its last step."),
        ({"load_best_model_at_end": False}, "No epoch was chosen"),
    ],
)
def test_how_the_epoch_was_chosen(study_values: dict[str, Any], training: dict[str, Any], told: str) -> None:
    study_values["base"]["training"] |= training
    assert told in about(parse_study(study_values), [], "").search


def test_methods_that_keep_the_last_epoch(study_values: dict[str, Any]) -> None:
    study_values["methods"]["lora"]["training"] = {"eval_strategy": "no"}
    assert "keep the one that was best on the held-out rows, the others the last" in (
        about(parse_study(study_values), [], "").search
    )


def test_a_search_is_told(make_study: Callable[..., Study]) -> None:
    assert "from a grid, one run for each value, grown by up to 2" in about(make_study(), [], "").search
    tpe = about(make_study(search={"sampler": "tpe", "trials": 7, "seed": 3}), [], "").search
    assert "TPE sampler in 7 trials for each method and task (sampler seed 3)" in tpe
