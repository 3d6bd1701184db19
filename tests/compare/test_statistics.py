"""Summaries of methods on tasks and over tasks, by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from melora.compare.record import Record
from melora.compare.statistics import average_ranks, overall, summarise, tasks_that_count

Scored = Callable[..., list[Record]]
NAN = float("nan")


def test_a_summary_by_hand(scored: Scored) -> None:
    records = [
        *scored("lora", [0.5, 0.6, 0.7]),
        *scored(
            "melora", [0.6, 0.65, 0.9], n=8, r=1, equivalent_rank=8, train_seconds=2.0, epochs=3.0, peak_memory=100
        ),
    ]
    records[-1] = replace(records[-1], train_seconds=5.0, peak_memory=300, epochs=None)
    records[-2] = replace(records[-2], train_seconds=None, peak_memory=None)
    lora, melora = summarise(records, "lora")
    assert melora.scores == {0: 0.6, 1: 0.65, 2: 0.9}
    assert melora.interval.mean == pytest.approx(2.15 / 3)
    assert melora.against.interval.mean == pytest.approx(0.35 / 3)
    assert melora.against.interval.low == pytest.approx(0.05)
    assert melora.against.verdict == "win"
    assert (melora.n, melora.r, melora.equivalent_rank) == (8, 1, 8)
    assert (melora.seconds, melora.peak_memory, melora.epochs) == (3.5, 300, 3.0)
    assert lora.against is None
    assert (lora.seconds, lora.peak_memory, lora.epochs) == (None, None, None)


def test_an_unscored_run_of_the_search_does_not_hide_the_scored_one_of_its_seed(scored: Scored) -> None:
    chosen = scored("lora", [0.5, 0.6])
    others = [replace(chosen[0], learning_rate=rate, chosen=False, test_score=None) for rate in (1e-4, 1e-2)]
    for records in ([others[0], *chosen, others[1]], [*others, *chosen], [*chosen, *others]):
        (summary,) = summarise(records, "lora")
        assert summary.scores == {0: 0.5, 1: 0.6}
        assert summary.learning_rate == 1e-3
        assert summary.rates == (1e-4, 1e-3, 1e-2)


def test_failed_runs_are_counted_and_missing_ones_are_not(scored: Scored) -> None:
    done, failed, missing = scored("lora", [0.5, 0.5, 0.5])
    failed = replace(failed, status="failed", test_score=None, chosen=False, learning_rate=1e-2)
    missing = replace(missing, status="missing", test_score=None, chosen=False, learning_rate=1.0)
    (summary,) = summarise([done, failed, missing], "lora")
    assert (summary.failed, summary.rates, summary.scores) == (1, (1e-3, 1e-2), {0: 0.5})


def test_scores_that_are_no_numbers_are_left_out(scored: Scored) -> None:
    (summary,) = summarise(scored("lora", [0.5, NAN, float("inf")]), "lora")
    assert summary.scores == {0: 0.5}
    (summary,) = summarise(scored("lora", [NAN]), "lora")
    assert (summary.scores, summary.interval) == ({}, None)


def test_nothing_is_known_of_a_method_without_a_finished_run(scored: Scored) -> None:
    failed = [replace(run, status="failed", test_score=None, chosen=False) for run in scored("melora", [0.5])]
    lora, melora = summarise([*scored("lora", [0.5]), *failed], "lora")
    assert (melora.interval, melora.against, melora.parameters, melora.learning_rate) == (None, None, None, None)
    assert melora.failed == 1
    assert lora.parameters == 1000


def test_ranks_with_ties(scored: Scored) -> None:
    records = [
        *scored("a", [0.9], "one"),
        *scored("b", [0.9], "one"),
        *scored("c", [0.5], "one"),
        *scored("a", [0.1], "two"),
        *scored("b", [0.3], "two"),
        *scored("c", [0.2], "two"),
        *scored("absent from two", [0.99], "one"),
    ]
    # one: a and b share places 1 and 2, c is third; two: b, c, a.
    assert average_ranks(summarise(records, "a")) == {"a": (1.5 + 3) / 2, "b": (1.5 + 1) / 2, "c": (3 + 2) / 2}


def test_ranks_where_less_is_better(scored: Scored) -> None:
    fields = {"metric": "loss", "greater_is_better": False}
    records = [*scored("a", [1.0], **fields), *scored("b", [2.0], **fields)]
    assert average_ranks(summarise(records, "a")) == {"a": 1.0, "b": 2.0}
    assert average_ranks([]) == {}


def test_over_all_tasks_by_hand(scored: Scored) -> None:
    records = [
        *scored("lora", [0.1, 0.2, 0.3], "one", parameters=10),
        *scored("melora", [0.2, 0.3, 0.4], "one", parameters=2),
        *scored("lora", [0.5, 0.6, 0.7], "two", parameters=20),
        *scored("melora", [0.4, 0.7, 0.7], "two", parameters=4),
    ]
    lora, melora = overall(summarise(records, "lora"), "lora")
    assert melora.interval.mean == pytest.approx((0.3 + 0.6) / 2)
    assert (melora.interval.low, melora.interval.high) == (pytest.approx(0.3), pytest.approx(0.55))
    # By seed the differences of the means are (0.1 - 0.1) / 2, (0.1 + 0.1) / 2 and 0.1 / 2.
    assert melora.against.interval.mean == pytest.approx(0.05)
    assert melora.against.interval.low == pytest.approx(0.0, abs=1e-12)
    assert melora.against.interval.high == pytest.approx(0.1)
    assert dict(melora.verdicts) == {"win": 1, "tie": 1}
    assert (melora.rank, lora.rank) == (1.25, 1.75)
    assert (melora.parameters, lora.parameters) == (3.0, 15.0)
    assert (lora.against, dict(lora.verdicts)) == (None, {})


def test_a_mean_over_tasks_needs_every_task(scored: Scored) -> None:
    records = [
        *scored("lora", [0.1, 0.2], "one"),
        *scored("lora", [0.5, NAN], "two"),
        *scored("melora", [0.2, 0.3], "one"),
        *scored("dora", [0.2, 0.3], "two"),
    ]
    lora, melora, _ = overall(summarise(records, "lora"), "lora")
    assert (lora.interval.count, lora.interval.mean) == (1, pytest.approx(0.3))  # seed 1 lacks the second task
    assert (melora.interval, melora.rank, melora.against) == (None, None, None)


def test_a_task_that_has_begun_takes_the_mean_from_no_one(scored: Scored) -> None:
    full = [run for method in "abc" for task in ("one", "two") for run in scored(method, [0.5, 0.6], task)]
    begun = [*full, *scored("a", [0.9], "three")]
    assert tasks_that_count(summarise(begun, "a")) == ["one", "two"]
    assert [row.interval.mean for row in overall(summarise(begun, "a"), "a")] == [pytest.approx(0.55)] * 3
    # A method that lacks a task has no mean, and the task still counts.
    lacking = [*begun, *scored("b", [0.8], "three"), *scored("d", [0.4, 0.4], "one"), *scored("d", [0.4], "two")]
    assert tasks_that_count(summarise(lacking, "a")) == ["one", "two"]
    late = [*full, *scored("d", [0.4, 0.4], "one")]
    assert tasks_that_count(summarise(late, "a")) == ["one", "two"]
    assert [row.interval is None for row in overall(summarise(late, "a"), "a")] == [False, False, False, True]
    assert tasks_that_count([]) == []


def test_no_mean_over_tasks_that_get_better_different_ways(scored: Scored) -> None:
    records = [
        *scored("lora", [0.9], "accuracy"),
        *scored("melora", [0.8], "accuracy"),
        *scored("lora", [1.0], "loss", metric="loss", greater_is_better=False),
        *scored("melora", [2.0], "loss", metric="loss", greater_is_better=False),
    ]
    lora, melora = overall(summarise(records, "lora"), "lora")
    assert (lora.interval, melora.interval) == (None, None)
    assert (lora.rank, melora.rank) == (1.0, 2.0)


def test_nothing_comes_of_nothing() -> None:
    assert summarise([], "lora") == []
    assert overall([], "lora") == []
