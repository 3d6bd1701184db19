"""A report's files."""

from collections.abc import Sequence
from pathlib import Path

from ..about import About
from ..record import Record
from .drawing.render import render
from .html import html_of
from .markdown import markdown_of
from .page import page_of
from .parquet import parquet_of
from .study import study_of


def write_report(folder: Path, about: About, records: Sequence[Record]) -> None:
    """Write results.parquet, plots/*.png, report.md and report.html, in place of those of an earlier call.

    Each file is complete or not there at all, also when this is stopped in between; report.html comes last. It opens
    without a network and without the other files. Pictures of an earlier call that this one lacks are left.

    Args:
        folder: made when it is missing.
        about: the study's words and plan.
        records: finished, failed and missing runs, in any order.

    Raises:
        OSError: the folder can't be written.
    """
    page = page_of(study_of(about, records))
    rendered = {picture.name: render(picture) for section in page.sections for picture in section.pictures}
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    _replace(folder / "results.parquet", parquet_of(records))
    for name, drawn in rendered.items():
        _replace(folder / "plots" / f"{name}.png", drawn.png)
    _replace(folder / "report.md", markdown_of(page).encode())
    _replace(folder / "report.html", html_of(page, {name: drawn.svg for name, drawn in rendered.items()}).encode())


def _replace(path: Path, content: bytes) -> None:
    """Through a temporary name, so that a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
