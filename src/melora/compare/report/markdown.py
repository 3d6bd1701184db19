"""A report as GitHub Markdown, its pictures linked."""

import re
from collections.abc import Iterable
from itertools import chain

from .parts import Column, Page, Section, Table

_SPECIAL = re.compile(r"([\\`*_\[\]|~])")
# At the start of a line these begin a heading or a list.
_LEADING = re.compile(r"^(\d*)([#+.)-])")


def markdown_of(page: Page) -> str:
    """The page without its recipes, which are in report.html and results.parquet."""
    parts = [f"# {escape(page.title)}", *map(_paragraph, page.introduction)]
    parts += chain.from_iterable(map(_section, page.sections))
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Text that Markdown and the HTML within it leave as it is."""
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", safe)


def _paragraph(text: str) -> str:
    return _LEADING.sub(r"\1\\\2", escape(text))


def _section(section: Section) -> Iterable[str]:
    if section.folds and not (section.paragraphs or section.tables):
        return
    yield f"## {escape(section.heading)}"
    yield from map(_paragraph, section.paragraphs)
    if section.items:
        yield "\n".join(f"- {_paragraph(item)}" for item in section.items)
    for picture in section.pictures:
        yield f"![{escape(f'{picture.caption}. {picture.alt}')}](plots/{picture.name}.png)"
    for table in section.tables:
        yield from _table(table)
    if section.folds:
        yield "Each run with its recipe is in report.html, and in results.parquet."


def _table(table: Table) -> Iterable[str]:
    yield f"**{escape(table.caption)}**"
    head = (_row(column.heading for column in table.columns), _rule(table.columns))
    yield "\n".join((*head, *map(_row, table.rows)))
    yield _paragraph(table.note)


def _rule(columns: Iterable[Column]) -> str:
    return "|" + "|".join("--:" if column.kind == "number" else "---" for column in columns) + "|"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(escape, cells)) + " |"
