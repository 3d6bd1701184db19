import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melora.compare.jobs import Cell
from melora.compare.known import Known
from melora.compare.process import Halt
from melora.compare.runner import Searches, count_left, records, run_study
from melora.compare.space import RATE
from melora.compare.study import Study

FIXED = {"extend": 0}


def _run(study: Study, known: Known, executor: Any) -> list[str]:
    lines: list[str] = []
    run_study(study, Searches(study), known, executor, 1, lines.append)
    return lines


def test_a_study_from_nothing_to_its_records(
    make_study: Callable[..., Study], executor: Any, nothing_known: Known
) -> None:
    study = make_study(search=FIXED)
    assert count_left(study, Searches(study), nothing_known) == 8
    lines = _run(study, nothing_known, executor)
    # For each method two rates, the first seed's chosen run scored, and the second seed's made and scored.
    assert [score for _, score in executor.made].count(False) == 4
    assert [score for _, score in executor.made].count(True) == 4
    assert len({run for run, _ in executor.made}) == 6
    assert len(lines) == 8
    assert lines[-1].startswith("[8/8] rating, ")
    assert " on the untouched split; about 0:00 left" in lines[-1]

    rows = records(study, Searches(study), nothing_known)
    assert len(rows) == 6
    for method in ("melora", "lora"):
        own = [row for row in rows if row.method == method]
        chosen = [row for row in own if row.chosen]
        searched = {row.learning_rate: row.validation_score for row in own if row.seed == 0}
        assert set(searched) == {0.002, 0.02}
        assert {row.learning_rate for row in chosen} == {max(searched, key=lambda rate: searched[rate] or -1.0)}
        assert [row.seed for row in chosen] == [0, 1]
        assert all(row.test_score is not None for row in chosen)
        assert [row.test_score for row in own if not row.chosen] == [None]
    assert [row.method for row in rows] == ["melora"] * 3 + ["lora"] * 3


def test_finished_runs_are_never_made_again(
    make_study: Callable[..., Study], study_values: dict[str, Any], executor: Any, nothing_known: Known
) -> None:
    _run(make_study(search=FIXED), nothing_known, executor)
    executor.made.clear()
    assert _run(make_study(search=FIXED), nothing_known, executor) == []
    study_values["methods"]["head"] = {"adapter": {"method": "head", "target_modules": None}}
    _run(make_study(search=FIXED, methods=study_values["methods"]), nothing_known, executor)
    wider = make_study(search=FIXED, methods=study_values["methods"])
    own = {job.run for job in (Cell(wider, "rating", "head").job({RATE: r}, s) for r in (0.002, 0.02) for s in (0, 1))}
    assert {run for run, _ in executor.made} <= own
    assert len(executor.made) == 4
    executor.made.clear()
    _run(make_study(search=FIXED, methods=study_values["methods"], seeds=[0, 1, 2]), nothing_known, executor)
    assert len(executor.made) == 3  # one more seed for each method


def test_a_halted_study_goes_on(make_study: Callable[..., Study], executor: Any, nothing_known: Known) -> None:
    study = make_study(search=FIXED)
    executor.halt_after = 3
    with pytest.raises(Halt):
        _run(study, nothing_known, executor)
    done = [row for row in records(study, Searches(study), nothing_known) if row.status == "done"]
    assert 1 <= len(done) <= 3
    executor.halt_after = None
    executor.made.clear()
    _run(study, nothing_known, executor)
    assert not {row.run for row in done if not row.chosen} & {run for run, score in executor.made if not score}
    assert count_left(study, Searches(study), nothing_known) == 0


def test_a_failed_run_is_kept_with_its_reason_and_never_chosen(
    make_study: Callable[..., Study], executor: Any, nothing_known: Known
) -> None:
    study = make_study(search=FIXED, methods={"lora": {"adapter": {"method": "lora"}}})
    executor.broken = {0.002}
    lines = _run(study, nothing_known, executor)
    rows = records(study, Searches(study), nothing_known)
    failed = [row for row in rows if row.status == "failed"]
    assert [(row.learning_rate, row.reason) for row in failed] == [(0.002, "the loss is NaN")]
    assert any("learning_rate 0.002, seed 0: failed: the loss is NaN" in line for line in lines)
    assert {row.learning_rate for row in rows if row.chosen} == {0.02}
    executor.made.clear()
    _run(study, nothing_known, executor)
    assert executor.made == []


def test_a_search_in_which_all_fails_scores_nothing(
    make_study: Callable[..., Study], executor: Any, nothing_known: Known
) -> None:
    study = make_study(learning_rates=[0.02], methods={"lora": {"adapter": {"method": "lora"}}})
    executor.broken = {0.02}
    lines = _run(study, nothing_known, executor)
    assert lines[-1] == "rating, lora: no run of the search succeeded, so nothing is scored"
    assert [row.status for row in records(study, Searches(study), nothing_known)] == ["failed"]


def test_a_grid_grows_to_where_the_best_rate_is_inside(
    make_study: Callable[..., Study], executor: Any, nothing_known: Known
) -> None:
    study = make_study(learning_rates=[1e-6, 2e-6], methods={"lora": {"adapter": {"method": "lora"}}}, seeds=[0])
    _run(study, nothing_known, executor)
    rates = sorted(row.learning_rate for row in records(study, Searches(study), nothing_known))
    assert len(rates) == 4
    assert rates in ([1e-6, 2e-6, 4e-6, 8e-6], [2.5e-7, 5e-7, 1e-6, 2e-6], [5e-7, 1e-6, 2e-6, 4e-6])


def test_an_archive_saves_the_runs(make_study: Callable[..., Study], executor: Any, nothing_known: Known) -> None:
    study = make_study(search=FIXED)
    _run(study, nothing_known, executor)
    rows = records(study, Searches(study), nothing_known)
    shutil.rmtree(study.output)
    archive = Known({row.run: row for row in rows})
    executor.made.clear()
    _run(study, archive, executor)
    assert executor.made == []
    assert records(study, Searches(study), archive) == rows


def test_trials_whose_runs_are_gone_are_made_again(
    make_study: Callable[..., Study], executor: Any, nothing_known: Known, tmp_path: Path
) -> None:
    (tmp_path / "study").mkdir()
    study = make_study(
        search={"sampler": "tpe", "trials": 3}, seeds=[0], methods={"lora": {"adapter": {"method": "lora"}}}
    )
    _run(study, nothing_known, executor)
    rows = records(study, Searches(study), nothing_known)
    worst = next(row for row in rows if not row.chosen)
    shutil.rmtree(tmp_path / "study" / worst.run)
    executor.made.clear()
    lines = _run(study, nothing_known, executor)
    assert executor.made == [(worst.run, False)]
    assert len(lines) == 1
    assert {row.status for row in records(study, Searches(study), nothing_known)} == {"done"}
