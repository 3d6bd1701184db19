"""Result files: rows added group by group, never overwritten; a stopped run keeps what it had and can go on."""

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

from ..errors import MeloraError
from .labels import label, title
from .row import Environment, Row

HEADER = [field.name for field in fields(Row)]


class Store:
    """Where rows go: one CSV file, or a folder with a CSV file for each suite.

    Args:
        path: FILE.csv, or a folder, which is made with the first rows.
        resume: whether the file or folder may be there already: new rows are then added to it.

    Raises:
        MeloraError: it exists (without resume), its parent does not, or a file in it has other columns.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        self.is_file = path.suffix == ".csv"
        if not path.parent.is_dir():
            raise MeloraError(f"--output {path}: there is no folder {path.parent}: make it first, or choose another")
        if self.is_file != path.is_file() and path.exists():
            kind = "a folder" if self.is_file else "a file without .csv"
            raise MeloraError(f"--output {path} is {kind}: give FILE.csv or the name of a folder")
        if path.exists() and not resume and (self.is_file or any(path.iterdir())):
            raise MeloraError(
                f"--output {path} exists: choose another name, results are never overwritten or mixed; --resume goes on"
            )
        self._rows = self.reread()

    def files(self) -> list[Path]:
        """The CSV files that are there."""
        if self.is_file:
            return [self.path] if self.path.exists() else []
        return sorted(self.path.glob("*.csv"))

    def reread(self) -> list[dict[str, str]]:
        """All rows that are on the disk now (see read_rows)."""
        return [row for file in self.files() for row in read_rows(file)]

    def has(self, suite: str, title: str, labels: list[str], environment: Environment) -> bool:
        """Whether each of these contestants has its row of this group, of the same commit, versions and machine."""
        same = ("commit", "machine", "torch", "peft", "device", "threads")
        wanted = {name: str(getattr(environment, name)) for name in same}
        found = {
            row["label"]
            for row in self._rows
            if (row["suite"], row["title"]) == (suite, title) and all(row[name] == wanted[name] for name in same)
        }
        return found >= set(labels)

    def add(self, suite: str, rows: Iterable[Row]) -> None:
        """Add a group's rows: all or none of them are in the file, whatever happens."""
        file = self.path if self.is_file else self.path / f"{suite}.csv"
        file.parent.mkdir(exist_ok=True)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, HEADER, lineterminator="\n")
        if not file.exists():
            writer.writeheader()
        writer.writerows({name: _rounded(value) for name, value in asdict(row).items()} for row in rows)
        replace(file, (file.read_text(encoding="utf-8") if file.exists() else "") + text.getvalue())


def replace(file: Path, text: str) -> None:
    """Write a file whole: to a temporary name beside it, renamed when all of it is on the disk."""
    temporary = file.with_name(f".{file.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file)


def read_rows(file: Path) -> list[dict[str, str]]:
    """A result file's rows as text, each with its group's "title" and its contestant's "label" beside the columns.

    Raises:
        MeloraError: no such file, or not one that this version wrote.
    """
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines)
            rows = list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise MeloraError(f"{file}: can't be read: {error}") from None
    missing = [name for name in HEADER if name not in (reader.fieldnames or [])]
    if missing:
        raise MeloraError(f"{file}: has no column {missing[0]}: not a result file of this version of melora bench")
    if any(None in row or None in row.values() for row in rows):
        raise MeloraError(f"{file}: a row has too few or too many cells: the file is damaged")
    return [{**row, "title": title(row), "label": label(row)} for row in rows]


def _rounded(value: object) -> object:
    return float(f"{value:.5g}") if isinstance(value, float) else value
