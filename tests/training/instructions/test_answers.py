from decimal import Decimal

import pytest

from melora.training.instructions.answers import final_number, same_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So 3 + 4 = 7.\n#### 7", "7"),
        ("#### 42\nQuestion: what is 8?", "42"),  # what a model writes on does not count
        ("####42", "42"),
        ("#### $1,234,567.50", "1234567.50"),
        ("#### -5", "-5"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("#### .5", "0.5"),
        ("#### 42.", "42"),
        ("#### 12%", "12"),
        ("#### 3 apples and 4 pears", "3"),
        ("The answer is 1,000.", "1000"),
        ("5 minus 3 is 2, so she has $2.00 left", "2"),
        ("He ran 3-4 miles", "-4"),
        ("72", "72"),
        ("#### none, but 9", "9"),
    ],
)
def test_the_final_number(text: str, number: str) -> None:
    assert final_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "no idea", "#### x", "-", "$", "####"])
def test_no_number(text: str) -> None:
    assert final_number(text) is None


def test_numbers_are_compared_as_numbers() -> None:
    assert same_number("it is 42.00", "#### 42")
    assert same_number("#### 1,000", "#### 1000")
    assert not same_number("#### 42.5", "#### 42")
    assert not same_number("", "#### 42")
    assert not same_number("", "")
