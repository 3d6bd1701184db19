"""What a page says of studies of all kinds; each of their pictures is drawn."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from melora.compare.about import About
from melora.compare.record import Point, Record
from melora.compare.report.drawing.render import drawn
from melora.compare.report.page import page_of
from melora.compare.report.study import study_of

MINUS, ABSENT = "\N{MINUS SIGN}", "\N{EN DASH}"
NAN = float("nan")
Small = Callable[..., tuple[About, list[Record]]]
Write = Callable[..., Any]


def with_scores(records: list[Record], method: str, scores: list[float]) -> list[Record]:
    """The same runs; this method's by seed with these scores on the untouched split and the validation rows."""
    return [
        replace(run, test_score=scores[run.seed], validation_score=scores[run.seed]) if run.method == method else run
        for run in records
    ]


def paragraphs(found: Any, name: str) -> str:
    return " ".join(found.section(name).paragraphs)


def test_scores_of_a_task_by_hand(written: Write, small: Small) -> None:
    about, records = small("LoRA r=8", "LoRA r=1", "MELoRA 8x1")
    for method, scores in (
        ("LoRA r=8", [0.70, 0.71, 0.72]),
        ("LoRA r=1", [0.60, 0.61, 0.62]),
        ("MELoRA 8x1", [0.80, 0.80, 0.81]),
    ):
        records = with_scores(records, method, scores)
    cells = written(about, records).cells("scores-glue-rte")
    assert list(cells["LoRA r=8"].values()) == [
        "LoRA r=8",
        "294,912",
        "0.001",
        "3",
        "0.7100 [0.7000, 0.7200]",
        "reference",
        "",
        f"MELoRA 8x1: {MINUS}0.0933 [{MINUS}0.1000, {MINUS}0.0900], loss",
        "36,864 (MELoRA 8x1)",
    ]
    assert list(cells["MELoRA 8x1"].values()) == [
        "MELoRA 8x1",
        "36,864",
        "0.005",
        "3",
        "0.8033 [0.8000, 0.8100]",
        "+0.0933 [+0.0900, +0.1000]",
        "win",
        "LoRA r=1: +0.1933 [+0.1900, +0.2000], win",
        "no other scores as well",
    ]
    assert cells["LoRA r=1"]["Verdict"] == "loss"


def test_methods_come_in_the_order_of_the_study(written: Write, made_up: Any) -> None:
    turned = tuple(reversed(list(made_up.METHODS)))
    found = written(made_up.about(methods=turned), made_up.records())
    assert tuple(found.cells("scores-glue-rte")) == turned
    assert tuple(found.cells("all-tasks-table")) == turned


def test_a_study_that_has_not_begun(written: Write, made_up: Any) -> None:
    planned = [made_up.missing(run) for run in made_up.records()]
    for about, records, count in (
        (made_up.about(), [], 0),
        (made_up.about(tasks=(), methods=(), seeds=(), rates={}, title="", description="", search="", study=""), [], 0),
        (made_up.about(), planned, 120),
    ):
        found = written(about, records)
        assert f"0 of {count} planned runs done, 0 failed, {count} not run yet." in paragraphs(found, "summary")
        assert "has no score yet, so nothing is compared with it" in paragraphs(found, "summary")
        assert found.pictures() == []
        assert len(found.document.all("details")) == count + 1
    table = found.table("missing-runs")
    assert table.caption == "Runs that are planned and not run yet (120)"
    assert len(table.rows) == 120
    assert found.cells("scores-glue-rte")["LoRA r=8"]["Mean [95% interval]"] == ABSENT


def test_only_failed_runs(written: Write, made_up: Any) -> None:
    found = written(made_up.about(), [made_up.failed(run, f"why {run.seed}\nnot") for run in made_up.records()])
    assert "0 of 120 planned runs done, 120 failed, 0 not run yet." in paragraphs(found, "summary")
    assert found.pictures() == []
    table = found.table("failed-runs")
    assert len(table.rows) == 120
    assert {row[-1] for row in table.rows} == {"why 0 not", "why 1 not", "why 2 not"}
    rates = found.cells("rates-glue-rte-table")
    assert set(rates["LoRA r=8"].values()) == {"LoRA r=8", "1 failed", "3 failed"}
    assert found.cells("scores-glue-rte")["head"]["Seeds"] == "0 (5 failed)"


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_are_undecided(written: Write, small: Small, seeds: int) -> None:
    about, records = small()
    about = replace(about, seeds=tuple(range(seeds)))
    found = written(about, [run for run in records if run.seed < seeds], draw=seeds == 1)
    cells = found.cells("scores-glue-rte")["MELoRA 8x1"]
    assert cells["Verdict"] == "undecided"
    assert "[" not in cells["Mean [95% interval]"] + cells["Minus reference [95% interval]"]
    assert f"Seeds: {seeds} (" in found.table("scores-glue-rte").note
    (item,) = found.section("summary").items
    assert item.startswith("MELoRA 8x1: 0 wins, 0 ties, 0 losses, 1 undecided (too few seeds); mean difference")


def test_a_reference_without_a_score(written: Write, small: Small, made_up: Any) -> None:
    about, records = small()
    others = [run for run in records if run.method != "LoRA r=8"]
    failed = [made_up.failed(run) for run in records if run.method == "LoRA r=8"]
    for plan, runs in (
        (about, others),
        (about, [*others, *failed]),
        (replace(about, reference="nothing in the study"), records),
    ):
        found = written(plan, runs)
        text = f"The reference, {plan.reference}, has no score yet, so nothing is compared with it."
        assert text in paragraphs(found, "summary")
        assert found.section("summary").items == ()
        cells = found.cells("scores-glue-rte")["MELoRA 8x1"]
        assert (cells["Verdict"], cells["Minus reference [95% interval]"]) == ("", ABSENT)
        assert cells["Mean [95% interval]"] != ABSENT


def test_no_seed_in_common_with_the_reference(written: Write, small: Small) -> None:
    about, records = small()
    apart = [run for run in records if (run.method == "LoRA r=8") == (run.seed == 0)]
    found = written(about, apart)
    assert "No other method has a score for a seed that the reference, LoRA r=8, has one for." in paragraphs(
        found, "summary"
    )
    assert found.cells("scores-glue-rte")["MELoRA 8x1"]["Minus the best other with no more parameters"] == (
        "no other is as small"
    )
    assert found.cells("scores-glue-rte")["LoRA r=8"]["Minus the best other with no more parameters"] == (
        "MELoRA 8x1: no seed in common"
    )


def test_scores_that_are_no_numbers(written: Write, small: Small) -> None:
    about, records = small()
    broken = with_scores(records, "MELoRA 8x1", [NAN, float("inf"), NAN])
    curve = (Point(1, 0.5, loss=NAN), Point(2, 1.0, validation_loss=NAN, validation_score=NAN))
    broken = [replace(run, points=curve) if run.method == "MELoRA 8x1" else run for run in broken]
    found = written(about, broken, draw=True)
    cells = found.cells("scores-glue-rte")["MELoRA 8x1"]
    assert (cells["Seeds"], cells["Mean [95% interval]"], cells["Verdict"]) == ("0", ABSENT, "")
    assert found.cells("rates-glue-rte-table")["MELoRA 8x1"]["0.005"] == "NaN (3), chosen"
    all_broken = written(about, with_scores(broken, "LoRA r=8", [NAN] * 3), draw=True)
    assert "none with a score yet" in paragraphs(all_broken, "summary")
    assert "front-glue-rte" not in all_broken.pictures()


def as_loss(records: list[Record]) -> list[Record]:
    return [replace(run, metric="loss", greater_is_better=False) for run in records]


def test_where_less_is_better(written: Write, small: Small) -> None:
    about, records = small("LoRA r=8", "MELoRA 8x1", "MELoRA 4x2")
    losses = {"LoRA r=8": [2.0, 2.1, 2.2], "MELoRA 8x1": [3.0, 3.1, 3.2], "MELoRA 4x2": [1.0, 1.2, 1.1]}
    for method, scores in losses.items():
        records = with_scores(records, method, scores)
    found = written(about, as_loss(records), draw=True)
    cells = found.cells("scores-glue-rte")
    assert {method: row["Verdict"] for method, row in cells.items()} == {
        "LoRA r=8": "",
        "MELoRA 8x1": "loss",
        "MELoRA 4x2": "win",
    }
    assert cells["LoRA r=8"]["Minus the best other with no more parameters"].startswith("MELoRA 4x2: +1.0000")
    assert cells["LoRA r=8"]["Minus the best other with no more parameters"].endswith("loss")
    assert cells["LoRA r=8"]["Fewest parameters of others that score as well"] == "73,728 (MELoRA 4x2)"
    assert cells["MELoRA 4x2"]["Fewest parameters of others that score as well"] == "no other scores as well"
    (picture,) = found.section("front").pictures
    assert picture.caption.endswith("glue/rte (less is better)")
    assert picture.alt.endswith(
        "by ascending parameters: MELoRA 8x1, 628,994 parameters, 3.1000; MELoRA 4x2, 665,858 parameters, 1.1000."
    )
    ranks = {method: row["Average rank"] for method, row in found.cells("all-tasks-table").items()}
    assert ranks == {"LoRA r=8": "2.00", "MELoRA 8x1": "3.00", "MELoRA 4x2": "1.00"}
    assert "less is better" in found.table("scores-glue-rte").caption
    item = found.section("summary").items[0]
    assert "mean difference +1.0000 [+1.0000, +1.0000] (less is better)" in item


def test_tasks_that_get_better_different_ways(written: Write, small: Small) -> None:
    about, records = small()
    _, others = small(task="glue/cola")
    found = written(replace(about, tasks=("glue/rte", "glue/cola")), [*records, *as_loss(others)])
    assert "There is none here: on some tasks more is better, on others less." in paragraphs(found, "all-tasks")
    assert {row["Mean over tasks [95% interval]"] for row in found.cells("all-tasks-table").values()} == {ABSENT}
    assert [picture for picture in found.pictures() if picture.startswith("front")] == [
        "front-glue-rte",
        "front-glue-cola",
    ]


def test_nothing_to_train_has_its_place_on_the_logarithmic_axis(written: Write, small: Small) -> None:
    about, records = small("head", "LoRA r=8")
    bare = [replace(run, head_parameters=None) for run in records]
    for runs in (bare, [run for run in bare if run.method == "head"]):
        found = written(about, runs, draw=True)
        assert "head, 0 parameters" in found.section("front").pictures[0].alt
    cells = found.cells("scores-glue-rte")["head"]
    assert (cells["Adapter parameters"], cells["Minus the best other with no more parameters"]) == (
        "0",
        "no other is as small",
    )


def test_the_axis_counts_the_head_and_says_so(written: Write, small: Small) -> None:
    found = written(*small("head", "LoRA r=8"))
    assert "all parameters that are trained: the adapter's and the head's" in paragraphs(found, "front")
    assert "head, 592,130 parameters" in found.section("front").pictures[0].alt
    assert "LoRA r=8, 887,042 parameters" in found.section("front").pictures[0].alt
    assert "The head's own parameters: 592,130." in found.table("scores-glue-rte").note


def test_n_and_r_only_where_melora_has_several(written: Write, small: Small) -> None:
    for methods in (("LoRA r=8", "GraLoRA"), ("LoRA r=8", "MELoRA 8x1")):
        assert written(*small(*methods)).section("grid") is None
    about, records = small("LoRA r=8", "MELoRA 8x1", "MELoRA 4x2", "MELoRA 8x8")
    found = written(about, records)
    places = [row[:4] for row in found.table("grid-table").rows]
    assert places == [("8", "4", "2", "73,728"), ("8", "8", "1", "36,864"), ("64", "8", "8", "294,912")]
    scores = {row[0]: row[4] for row in found.table("scores-glue-rte").rows}
    assert [row[4] for row in found.table("grid-table").rows] == [
        scores[method] for method in ("MELoRA 4x2", "MELoRA 8x1", "MELoRA 8x8")
    ]


@pytest.mark.parametrize("greater", [True, False])
def test_the_best_of_methods_with_the_same_n_and_r_stands_in_the_grid(
    written: Write, small: Small, greater: bool
) -> None:
    about, records = small("MELoRA 8x1", "MELoRA 4x2", "MELoRA 2x4")
    records = with_scores(records, "MELoRA 4x2", [1.0, 1.0, 1.0])
    records = with_scores(records, "MELoRA 2x4", [2.0, 2.0, 2.0])
    records = [replace(run, n=4, r=2, greater_is_better=greater) if run.n == 2 else run for run in records]
    records = [replace(run, greater_is_better=greater) for run in records]
    rows = {row[1:3]: row[4] for row in written(about, records).table("grid-table").rows}
    assert rows["4", "2"] == (
        "2.0000 [2.0000, 2.0000], MELoRA 2x4" if greater else "1.0000 [1.0000, 1.0000], MELoRA 4x2"
    )
    assert "MELoRA" not in rows["8", "1"]


def test_rates_by_hand(written: Write, small: Small, made_up: Any) -> None:
    about, records = small("LoRA r=8")
    records = with_scores(records, "LoRA r=8", [0.5, 0.6, 0.7])
    other = replace(made_up.record("LoRA r=8", "glue/rte", 5e-4, 0), validation_score=0.4)
    slower = replace(other, settings={"training.warmup_ratio": 0.1}, validation_score=0.45)
    worse = made_up.failed(made_up.record("LoRA r=8", "glue/rte", 5e-3, 0))
    records = [replace(run, settings={"training.warmup_ratio": 0.06}) for run in records]
    found = written(about, [*records, other, slower, worse, made_up.missing(replace(worse, seed=1))])
    assert list(found.cells("rates-glue-rte-table")["LoRA r=8"].items())[1:] == [
        ("0.0005", "0.4500 (1)"),
        ("0.001", "0.6000 (3), chosen"),
        ("0.005", "1 failed, 1 not run yet"),
    ]
    assert found.cells("scores-glue-rte")["LoRA r=8"]["Learning rate"] == "0.001, training.warmup_ratio=0.06"
    lower = written(about, as_loss([*records, other, slower]))
    assert lower.cells("rates-glue-rte-table")["LoRA r=8"]["0.0005"] == "0.4000 (1)"


def test_each_grid_of_rates_with_its_methods(written: Write, small: Small) -> None:
    about, records = small("head", "LoRA r=8", "MELoRA 8x1")
    about = replace(about, rates={"head": (1e-3,), "LoRA r=8": (1e-4, 1e-3)})
    note = written(about, records).table("scores-glue-rte").note
    # The plan says nothing of MELoRA 8x1: its grid is that of its runs.
    assert "Learning rates: 0.001 for head; 0.0001, 0.001 for LoRA r=8; 0.005 for MELoRA 8x1." in note


def test_runs_that_measured_nothing_have_no_pictures_of_it(written: Write, small: Small) -> None:
    about, records = small("LoRA r=8")
    bare = [replace(run, points=(), step_seconds=None, peak_memory=None, validation_score=None) for run in records]
    found = written(about, bare, draw=True)
    assert found.pictures() == ["front-glue-rte"]
    assert found.cells("rates-glue-rte-table")["LoRA r=8"]["0.001"] == "chosen"
    assert "has logged a curve" in paragraphs(found, "curves")
    timed = written(about, [replace(run, peak_memory=None) for run in records], draw=True)
    assert "costs-glue-rte" in timed.pictures()


def test_curves_are_means_where_all_seeds_have_a_value(written: Write, small: Small) -> None:
    about, records = small("LoRA r=8")

    def curve(*scores: float) -> tuple[Point, ...]:
        return tuple(Point(i, float(i), validation_score=score) for i, score in enumerate(scores, start=1))

    curves = (curve(0.1, 0.2, 0.9), curve(0.3, 0.4), curve(0.2, 0.6))
    found = written(about, [replace(run, points=curves[run.seed]) for run in records])
    (picture,) = found.section("curves").pictures
    assert picture.name == "score-glue-rte"
    assert picture.alt == "1 method. Mean over seeds at the end: LoRA r=8 0.4000."


def test_the_kept_adapters_own_score_is_no_point_of_a_curve(written: Write, small: Small) -> None:
    """A run ends with a score of the epoch that it kept, logged at the last step."""
    about, records = small("LoRA r=8")

    def curve(kept: float, *scores: float) -> tuple[Point, ...]:
        own = [Point(i, float(i), validation_score=score) for i, score in enumerate(scores, start=1)]
        return (*own, Point(len(own), float(len(own)), validation_score=kept))

    curves = (curve(0.6, 0.6, 0.2), curve(0.4, 0.3, 0.4), curve(0.5, 0.5, 0.3))
    found = written(about, [replace(run, points=curves[run.seed]) for run in records])
    (picture,) = found.section("curves").pictures
    assert picture.alt == "1 method. Mean over seeds at the end: LoRA r=8 0.3000."


def test_costs_by_hand(written: Write, small: Small) -> None:
    about, records = small("LoRA r=8")
    values = [(100.0, 0.5, 2**20), (200.0, 0.1, 3 * 2**20), (600.0, 0.2, None)]
    measured = [
        replace(run, train_seconds=time, step_seconds=step, peak_memory=memory)
        for run, (time, step, memory) in zip(records, values, strict=True)
    ]
    found = written(about, measured)
    assert list(found.cells("costs-glue-rte-table")["LoRA r=8"].values())[1:] == [
        "3",
        "200 ms",
        "5.0 min",
        "3 MiB",
        "5",
        "a made-up processor, 2 cores, 2 threads",
    ]
    assert "set-ups" not in paragraphs(found, "costs")
    mixed = written(about, [*measured[:2], replace(measured[2], threads=16)])
    assert "The runs are from 2 set-ups" in paragraphs(mixed, "costs")


def test_every_run_with_its_recipe(written: Write, made_up: Any) -> None:
    records = made_up.records()
    found = written(made_up.about(), records)
    texts = [element.text.removeprefix("\n") for element in found.document.all("pre")]
    assert sorted(texts[:-1]) == sorted(record.recipe for record in records)
    assert texts[-1] == made_up.about().study
    assert all(element.inside[-1] == "details" for element in found.document.all("pre"))
    lines = [element.text for element in found.document.all("summary")]
    assert "GraLoRA, learning rate 0.005, seed 0, failed" in lines
    assert "MELoRA 2x4, learning rate 0.001, seed 2, not run yet" in lines
    assert [row[1:] for row in found.table("failed-runs").rows] == [
        ("glue/cola", "GraLoRA", "0.005", "0", "out of memory after 12 steps")
    ]
    assert [row[1:] for row in found.table("missing-runs").rows] == [("glue/stsb", "MELoRA 2x4", "0.001", "2")]


def test_pictures_grow_with_the_number_of_methods(small: Small) -> None:
    about, records = small("LoRA r=8")
    for count, width in ((30, 10), (12, 40)):
        names = [f"{'m' * width}{i:02d}" for i in range(count)]
        runs = [replace(records[0], method=name, points=()) for name in names]
        page = page_of(study_of(replace(about, methods=tuple(names), reference=names[0]), runs))
        for picture in (picture for section in page.sections for picture in section.pictures):
            with drawn(picture) as figure:  # matplotlib warns, an error here, where the axes have no room
                figure.draw_without_rendering()
                inside = figure.bbox.padded(1)
                for part in (*figure.legends, *figure.axes):
                    box = part.get_tightbbox()
                    assert inside.x0 <= box.x0 < box.x1 <= inside.x1
                    assert inside.y0 <= box.y0 < box.y1 <= inside.y1
                assert all(axes.bbox.height > 100 for axes in figure.axes)


def test_runs_of_methods_and_tasks_outside_the_plan_are_shown(written: Write, small: Small) -> None:
    about, records = small()
    found = written(replace(about, tasks=(), methods=("LoRA r=8",)), records)
    assert list(found.cells("scores-glue-rte")) == ["LoRA r=8", "MELoRA 8x1"]
