"""The summary at the head of a page."""

import re
from dataclasses import replace
from typing import Any

from .test_page import Small, Write, paragraphs


def test_the_summary_counts_runs_and_verdicts(written: Write, made_up: Any) -> None:
    found = written(made_up.about(), made_up.records())
    assert "118 of 120 planned runs done, 1 failed, 1 not run yet. 8 methods, 3 tasks" in paragraphs(found, "summary")
    items = {item.split(":")[0]: item for item in found.section("summary").items}
    assert list(items) == [method for method in made_up.METHODS if method != "LoRA r=8"]
    cells = {
        (table.caption.split(":")[0], row[0]): row[6] for table in found.section("scores").tables for row in table.rows
    }
    assert set(cells.values()) >= {"win", "tie", "loss", "undecided", ""}
    for method, item in items.items():
        verdicts = [cells[task, method] for task in made_up.TASKS]
        counted = [int(re.search(rf"(\d+) {word}", item).group(1)) for word in ("win", "tie", "loss")]
        assert counted == [verdicts.count(word) for word in ("win", "tie", "loss")]
        assert ("1 undecided" in item) == ("undecided" in verdicts)
    assert "36,864 adapter parameters, 0.125 times the reference's." in items["MELoRA 8x1"]
    assert items["head"].endswith("0 adapter parameters.")
    assert items["GraLoRA"].endswith("as many as the reference.")
    over_all = found.cells("all-tasks-table")
    assert [over_all["MELoRA 2x4"][word] for word in ("Wins", "Ties", "Losses", "Undecided")] == [
        *re.findall(r"(\d+) (?:wins?|ties?|loss(?:es)?|undecided)", items["MELoRA 2x4"])
    ]


def test_the_summary_tells_of_seeds_that_wait_for_a_search(written: Write, small: Small, made_up: Any) -> None:
    about, records = small("LoRA r=8", "LoRA r=1", "MELoRA 8x1")
    waiting = "more runs are planned once"
    assert waiting not in paragraphs(written(about, records), "summary")
    begun = [
        made_up.missing(replace(run, chosen=False)) if run.method != "LoRA r=8" else run
        for run in records
        if run.seed == about.seeds[0] or run.method == "LoRA r=8"
    ]
    told = paragraphs(written(about, begun), "summary")
    assert f"At least {2 * (len(about.seeds) - 1)} {waiting} 2 searches have ended: the other seeds." in told
    last = [made_up.missing(run) if run.seed == about.seeds[-1] else run for run in records]
    assert waiting not in paragraphs(written(about, last), "summary"), "every search has ended"
