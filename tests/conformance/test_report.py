"""The page of results."""

from typing import Any

from conformance.report import group, render, summary_line

RESULT: dict[str, Any] = {
    "mode": "melora",
    "outcomes": {
        "tests/test_a.py::TestA::test_one[x]": {"outcome": "passed", "reason": ""},
        "tests/test_a.py::TestA::test_two[x]": {
            "outcome": "skipped",
            "reason": "Test not applicable for <class 'conformance.stand_in.StandIn'>",
        },
        "tests/test_a.py::TestA::test_two[y]": {"outcome": "skipped", "reason": "Test not applicable for MeloraConfig"},
        "tests/test_b.py::test_three": {"outcome": "failed", "reason": "E   assert a | b"},
    },
    "lora_only_rows": {"asks for what only LoRA has: use_dora": 5},
    "left_out": {"about DoRA": 2, "names another method, or none": 40},
}


def test_summary() -> None:
    assert summary_line(RESULT) == "mode melora: 1 passed, 1 failed, 2 skipped, 42 left out"


def test_page() -> None:
    page = render([RESULT], {"Python": "3.11.7", "peft": "0.21.2"})
    assert "Python 3.11.7, peft 0.21.2." in page
    assert "| test_a.py | 1 | 0 | 2 |" in page
    assert "| **all** | **1** | **1** | **2** |" in page
    assert "| 2 | Test not applicable for MeloraConfig | test_two |" in page
    assert "| 1 | E assert a \\| b | test_three |" in page
    assert "| 5 | asks for what only LoRA has: use_dora |" in page
    assert page.index("| 40 | names another method, or none |") < page.index("| 2 | about DoRA |")


def test_reasons_are_grouped() -> None:
    assert group("no  <class 'a.b.StandIn'>\n here") == "no MeloraConfig here"
