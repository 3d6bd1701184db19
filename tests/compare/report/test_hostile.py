"""Text from the study or a run that would be markup, in each form of the report."""

import html
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from melora.compare.record import Record
from melora.compare.report.drawing.render import render
from melora.compare.report.markdown import escape
from melora.compare.report.page import page_of
from melora.compare.report.study import study_of

EVIL = (
    "</title></script></pre><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\"' & {{ 7 * 7 }}"
)


def poisoned(record: Record, text: str) -> Record:
    """All its text, but what it is called in other records."""
    return replace(
        record,
        run=text,
        peft_method=text,
        metric=text,
        settings={text: text},
        test_metrics={text: 0.5},
        machine=text,
        date=text,
        commit=text,
        recipe=text,
        reason=text,
        task=f"task {text}",
        method=f"{record.method} {text}",
    )


@pytest.fixture(scope="module")
def evil(small: Callable[..., Any], made_up: Any, written: Callable[..., Any]) -> Any:
    about, records = small()
    failed = made_up.failed(records[-1])
    plan = replace(
        about,
        title=EVIL,
        description=f"{EVIL}\n\n{EVIL}",
        search=EVIL,
        study=EVIL,
        reference=f"LoRA r=8 {EVIL}",
        tasks=(f"task {EVIL}",),
        methods=tuple(f"{method} {EVIL}" for method in about.methods),
        rates={f"{method} {EVIL}": rates for method, rates in about.rates.items()},
    )
    return written(plan, [poisoned(record, EVIL) for record in [*records[:-1], failed]])


def test_no_text_becomes_markup_in_the_page(evil: Any) -> None:
    document = evil.document
    assert not document.all("script", "img")
    assert [element.text for element in document.all("title")] == [EVIL]
    assert [element.text for element in document.all("h1")] == [EVIL]
    # A recipe is shown to the letter, in each run and in the study file.
    assert [element.text.removeprefix("\n") for element in document.all("pre")] == [EVIL] * 7
    places = {element.tag for element in document.elements if EVIL in element.text}
    assert {"h1", "p", "li", "caption", "th", "td", "summary", "dd", "pre", "figcaption"} <= places
    assert all(EVIL in element.attributes["aria-label"] for element in document.all("pre")[:-1])


def test_no_text_becomes_markup_in_markdown(evil: Any) -> None:
    assert "<" not in evil.markdown
    shown = re.sub(r"\\(.)", r"\1", html.unescape(evil.markdown))
    assert EVIL in shown
    rows = re.findall(r"^\|.*\|$", evil.markdown, re.MULTILINE)
    assert len(rows) > 10


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", r"a\|b"),
        ("*a* _b_ `c`", r"\*a\* \_b\_ \`c\`"),
        ("[a](http://b) ![c](d)", r"\[a\](http://b) !\[c\](d)"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("\\", "\\\\"),
        ("LoRA r=8, 0.5-1", "LoRA r=8, 0.5-1"),
    ],
)
def test_escapes_of_markdown(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_paragraphs_do_not_become_headings_or_lists(written: Callable[..., Any], made_up: Any) -> None:
    description = "# no heading\n\n- no list\n\n1. no list\n\n> no quotation\n\nthis is # - 1. plain"
    text = written(made_up.about(description=description), []).markdown
    assert "\n\\# no heading\n\n\\- no list\n\n1\\. no list\n\n&gt; no quotation\n\nthis is # - 1. plain\n" in text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name",
    [
        "$x_1$ costs $",
        "_hidden",
        "\N{CJK UNIFIED IDEOGRAPH-4E2D}\N{HOT BEVERAGE}",
        "a\nb",
        "#1f6fb4",
        "m" * 300,
        "\\frac{",
    ],
)
def test_names_of_any_kind_stand_in_a_picture(name: str, small: Callable[..., Any], made_up: Any) -> None:
    about, records = small("LoRA r=8")
    about = replace(about, methods=(name,), reference=name, rates={name: (1e-3,)}, tasks=(name,))
    page = page_of(study_of(about, [replace(record, method=name, task=name) for record in records]))
    picture = next(picture for section in page.sections for picture in section.pictures)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", render(picture).svg)
    shown = " ".join(name.split())
    shown = shown if len(shown) <= 28 else shown[:27] + "\N{HORIZONTAL ELLIPSIS}"
    assert [html.unescape(text).strip() for text in texts].count(shown) == 2  # the title and the legend
