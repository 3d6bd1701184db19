"""Methods of one size, pair by pair."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from melora.compare.about import About
from melora.compare.record import Record

Small = Callable[..., tuple[About, list[Record]]]


def test_methods_of_one_size_side_by_side(written: Callable[..., Any], small: Small) -> None:
    about, records = small("LoRA r=8", "LoRA r=1", "MELoRA 8x1")
    sizes = {"LoRA r=8": 73_728, "LoRA r=1": 9_216, "MELoRA 8x1": 9_984}
    scores = {"LoRA r=8": 0.9, "LoRA r=1": 0.5, "MELoRA 8x1": 0.6}
    records = [
        replace(run, parameters=sizes[run.method], test_score=scores[run.method] + run.seed / 10) for run in records
    ]
    found = written(about, records)
    (task,) = about.tasks
    cells = found.cells("equal-parameters")
    assert list(cells) == ["MELoRA 8x1 minus LoRA r=1"]
    assert cells["MELoRA 8x1 minus LoRA r=1"][task] == "+0.1000 [+0.1000, +0.1000], win"
    assert cells["MELoRA 8x1 minus LoRA r=1"]["Adapter parameters"] == "9,216"


def test_no_table_of_equal_sizes_where_there_are_none(written: Callable[..., Any], small: Small) -> None:
    about, records = small("LoRA r=8", "LoRA r=1")
    different = [replace(run, parameters=100 if run.method == "LoRA r=1" else 800) for run in records]
    assert "equal-parameters" not in [section.name for section in written(about, different).page.sections]
