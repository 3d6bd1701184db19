"""Studies and their pages, and an HTML page as what a reader meets in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from melora.compare.about import About
from melora.compare.record import Record
from melora.compare.report.drawing.render import drawn
from melora.compare.report.html import html_of
from melora.compare.report.markdown import markdown_of
from melora.compare.report.page import page_of
from melora.compare.report.parts import Page, Section, Table
from melora.compare.report.study import study_of

VOID = {"meta", "link", "br", "hr", "img", "input"}


@dataclass
class Element:
    """An element of a page, with the tags around it and all text in it."""

    tag: str
    attributes: dict[str, str | None]
    inside: tuple[str, ...]
    text: str = ""


@dataclass
class Document(HTMLParser):
    """A page's elements in their order; fails on tags that do not match.

    Attributes:
        elements: in the order in which they start.
    """

    html: str
    elements: list[Element] = field(default_factory=list)
    open: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), tuple(parent.tag for parent in self.open))
        assert len(attrs) == len(element.attributes)
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def all(self, *tags: str) -> list[Element]:
        return [element for element in self.elements if element.tag in tags]


@dataclass(frozen=True)
class Written:
    """A study's page in all its forms."""

    page: Page
    document: Document
    markdown: str

    def section(self, name: str) -> Section | None:
        return next((section for section in self.page.sections if section.name == name), None)

    def table(self, name: str) -> Table:
        return next(table for section in self.page.sections for table in section.tables if table.name == name)

    def cells(self, name: str) -> dict[str, dict[str, str]]:
        """First cell of a row -> heading -> cell."""
        table = self.table(name)
        headings = [column.heading for column in table.columns]
        return {row[0]: dict(zip(headings, row, strict=True)) for row in table.rows}

    def pictures(self) -> list[str]:
        return [picture.name for section in self.page.sections for picture in section.pictures]


@pytest.fixture(scope="session")
def written() -> Callable[..., Written]:
    """Makes the page of a study; pictures are drawn if asked, and left out of the HTML, which takes longer."""

    def write(about: About, records: Sequence[Record], *, draw: bool = False) -> Written:
        page = page_of(study_of(about, records))
        pictures = [picture for section in page.sections for picture in section.pictures]
        for picture in pictures if draw else ():
            with drawn(picture) as figure:
                figure.set_layout_engine("none")  # it takes longer than the drawing
                figure.draw_without_rendering()
        html = html_of(page, {picture.name: "<svg></svg>" for picture in pictures})
        return Written(page, Document(html), markdown_of(page))

    return write


@pytest.fixture(scope="session")
def small(made_up: SimpleNamespace) -> Callable[..., tuple[About, list[Record]]]:
    """Makes a study of few methods on one task: its plan, and its finished and chosen runs, three seeds each."""

    def make(*methods: str, task: str = "glue/rte") -> tuple[About, list[Record]]:
        chosen = methods or ("LoRA r=8", "MELoRA 8x1")
        rates = {method: (made_up.METHODS[method].best_rate,) for method in chosen}
        records = [
            made_up.as_chosen(made_up.record(method, task, *rates[method], seed))
            for method in chosen
            for seed in range(3)
        ]
        return made_up.about(tasks=(task,), methods=chosen, rates=rates), records

    return make


@pytest.fixture(scope="session")
def document_of() -> Callable[[str], Document]:
    """Reads a page."""
    return Document
