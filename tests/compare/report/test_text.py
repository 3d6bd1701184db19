"""Numbers and names as they are written."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melora.compare.report import text
from melora.compare.statistics_interval import Interval

MINUS = "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("value", "plain", "signed"),
    [
        (None, text.ABSENT, text.ABSENT),
        (0.0, "0.0000", "0.0000"),
        (0.91234, "0.9123", "+0.9123"),
        (-0.00314, f"{MINUS}0.0031", f"{MINUS}0.0031"),
        (12.345, "12.35", "+12.35"),
        (-123456.7, f"{MINUS}123,457", f"{MINUS}123,457"),
        (float("nan"), "NaN", "NaN"),
        (float("inf"), "infinite", "+infinite"),
        (float("-inf"), f"{MINUS}infinite", f"{MINUS}infinite"),
    ],
)
def test_numbers(value: float | None, plain: str, signed: str) -> None:
    assert text.number(value) == plain
    assert text.signed(value) == signed


def test_intervals() -> None:
    assert text.with_interval(None) == text.ABSENT
    assert text.with_interval(Interval(0.5, None, None, 2)) == "0.5000"
    assert text.with_interval(Interval(0.5, 0.25, 0.75, 3)) == "0.5000 [0.2500, 0.7500]"
    found = text.with_interval(Interval(0.5, -0.25, 0.75, 3), difference=True)
    assert found == f"+0.5000 [{MINUS}0.2500, +0.7500]"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (text.count(None), text.ABSENT),
        (text.count(294912), "294,912"),
        (text.count(1.6), "2"),
        (text.short_count(592130), "592.1k"),
        (text.short_count(1.25e6), "1.25M"),
        (text.short_count(7e9), "7B"),
        (text.short_count(50), "50"),
        (text.rate(5e-5), "5e-05"),
        (text.rate(0.001), "0.001"),
        (text.duration(None), text.ABSENT),
        (text.duration(0.0123), "12.3 ms"),
        (text.duration(90), "90 s"),
        (text.duration(600), "10.0 min"),
        (text.duration(9000), "2.5 h"),
        (text.memory(3 * 2**30), "3,072 MiB"),
        (text.memory(None), text.ABSENT),
        (text.amount(1, "win", "wins"), "1 win"),
        (text.amount(0, "win", "wins"), "0 wins"),
        (text.line(" a\nb\x00c\t\ud800d "), "a b c d"),
        (text.block("a\n  b\x00"), "a\n  b "),
    ],
)
def test_other_values(found: str, expected: str) -> None:
    assert found == expected


def test_slugs_by_hand() -> None:
    names = ["glue/SST2", "glue sst2", "glue-sst2-2", "\N{GREEK SMALL LETTER ALPHA}", "../../etc", ""]
    assert list(text.slugs(names).values()) == ["glue-sst2", "glue-sst2-2", "glue-sst2-2-2", "task", "etc", "task-2"]


@given(st.lists(st.text("ab/ -2Ä."), unique=True))
def test_no_two_slugs_are_the_same_and_none_leaves_its_folder(names: list[str]) -> None:
    found = text.slugs(names)
    assert list(found) == names
    assert len(set(found.values())) == len(names)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]*", slug) for slug in found.values())
