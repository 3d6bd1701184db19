"""What a report is made of, before it is HTML or Markdown: sections of text, pictures, tables and folded text."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Column:
    """A column's heading; numbers stand to the right, a verdict is one of win, tie, loss, undecided or nothing."""

    heading: str
    kind: Literal["text", "number", "verdict"] = "text"


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first cell of each names the row.

    Attributes:
        name: unique in the report; letters, digits and hyphens.
        caption: what it shows, in a line.
        columns: as many as each row has cells.
        note: what must be known to read the numbers; stands under the table.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


@dataclass(frozen=True)
class Picture:
    """A drawing, narrow enough for a phone.

    Attributes:
        name: unique in the report, and its file's name; letters, digits and hyphens.
        caption: what it shows, in a line or two.
        alt: what it says, for those who can't see it.
        draw: draws into an empty figure of this size.
        width, height: in inches.
    """

    name: str
    caption: str
    alt: str
    draw: "Callable[[Figure], None]"
    height: float = 3.5
    width: float = 4.1


@dataclass(frozen=True)
class Fold:
    """Something that few will open: a line, then facts and a text as it is (a recipe).

    Attributes:
        name: unique in the report; letters, digits and hyphens.
    """

    name: str
    line: str
    facts: tuple[tuple[str, str], ...]
    text: str
    text_label: str


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it, in this order.

    Attributes:
        name: unique in the report; letters, digits and hyphens.
        folds: by subheading.
    """

    name: str
    heading: str
    paragraphs: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    folds: tuple[tuple[str, tuple[Fold, ...]], ...] = ()


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        introduction: paragraphs.
    """

    title: str
    introduction: tuple[str, ...]
    sections: tuple[Section, ...]
