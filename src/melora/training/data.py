"""Reading the data files, with everything that can be wrong in them found before a model is loaded."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from ..errors import MeloraError
from .recipe import DataSpec
from .schema import nearest, one_line


@dataclass(frozen=True)
class Split:
    """One data file, read.

    Attributes:
        name: "train" or "validation", for messages.
        path: the file.
        texts: a tuple of one or two strings per row.
        labels: the label column's values as the file types them, never missing; or what the task's data has instead.
    """

    name: str
    path: Path
    texts: list[tuple[str, ...]]
    labels: list[Any]

    def __len__(self) -> int:
        return len(self.labels)

    def row(self, index: int) -> str:
        """Where row `index` is, for messages: counted from 1, a header line not counted."""
        return f"{self.path}, row {index + 1}"


def read_splits(spec: DataSpec) -> tuple[Split, Split]:
    """(train, validation) of a recipe.

    Raises:
        MeloraError: see read_split.
    """
    return read_split("train", spec.train, spec), read_split("validation", spec.validation, spec)


def read_split(name: str, path: str | Path, spec: DataSpec) -> Split:
    """Read one file.

    Args:
        name: "train" or "validation".
        path: a .csv, .tsv, .jsonl or .parquet file.
        spec: which columns to take.

    Raises:
        MeloraError: the file is missing, empty, of an unknown kind or damaged; a column is missing; a text or label is.
    """
    file = Path(path).expanduser()
    table = _read_table(name, file, spec)
    if table.num_rows == 0:
        raise MeloraError(f"data.{name} {file}: has no rows")
    texts, labels = read_rows(spec, name, file, table)
    return Split(name, file, texts, labels)


@singledispatch
def read_rows(spec: DataSpec, name: str, file: Path, table: Any) -> tuple[list[tuple[str, ...]], list[Any]]:
    """(texts, labels) of a table by the kind of its spec; a kind of data with other columns registers its own.

    Raises:
        MeloraError: a column is missing; a text or label is.
    """
    check_columns((*spec.text_columns, spec.label), name, file, table)
    columns = [text_column(table, file, column) for column in spec.text_columns]
    labels = table[spec.label].to_pylist()
    _refuse_missing(labels, file, spec.label)
    return list(zip(*columns, strict=True)), labels


def check_columns(wanted: Iterable[str], name: str, file: Path, table: Any) -> None:
    """Raise a MeloraError that names the first missing column and what there is."""
    for column in wanted:
        if column not in table.column_names:
            raise MeloraError(
                f"data.{name} {file}: no column {column!r}; the columns are {', '.join(table.column_names)} "
                f"({nearest(column, table.column_names)})"
            )


def _read_table(name: str, file: Path, spec: DataSpec) -> Any:
    reader = _READERS.get(file.suffix.lower())
    if not file.is_file():
        raise MeloraError(f"data.{name} {file}: no such file (paths are taken from the current folder, {Path.cwd()})")
    if reader is None:
        raise MeloraError(f"data.{name} {file}: unknown kind of file; there is {', '.join(_READERS)}")
    if file.stat().st_size == 0:
        raise MeloraError(f"data.{name} {file}: the file is empty")
    try:
        return reader(file, spec)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise MeloraError(f"data.{name} {file}: not a readable {file.suffix} file: {one_line(error)[:200]}") from None


def _read_csv(file: Path, spec: DataSpec, delimiter: str = ",") -> Any:
    as_text = dict.fromkeys(spec.text_columns, pyarrow.string())  # a text such as "007" stays as it is
    return pyarrow.csv.read_csv(
        file,
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=as_text),
    )


_READERS: dict[str, Callable[[Path, DataSpec], Any]] = {
    ".csv": _read_csv,
    ".tsv": lambda file, spec: _read_csv(file, spec, "\t"),
    ".jsonl": lambda file, spec: pyarrow.json.read_json(file),
    ".parquet": lambda file, spec: pyarrow.parquet.read_table(file),
}


def text_column(table: Any, file: Path, column: str) -> list[str]:
    """A column's texts.

    Raises:
        MeloraError: one is missing, or is no text, with its row.
    """
    values: list[Any] = table[column].to_pylist()
    _refuse_missing(values, file, column)
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise MeloraError(
                f"{file}, row {index + 1}: column {column!r} holds {value!r}, not text; name a text column"
            )
    return values


def _refuse_missing(values: list[Any], file: Path, column: str) -> None:
    for index, value in enumerate(values):
        if value is None:
            raise MeloraError(f"{file}, row {index + 1}: column {column!r} is missing; fill it in or remove the row")
