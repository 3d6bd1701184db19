"""Reading the data files, with everything that can be wrong in them found before a model is loaded."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from ..errors import MeloraError
from .dataspec import DataSpec
from .places import COMPRESSED, HubSplit, kind_of, load_hub_split, place_of
from .schema import nearest, one_line


@dataclass(frozen=True)
class Split:
    """Rows to train or to score on, read.

    Attributes:
        name: "train" or "validation", for messages.
        path: the file, or the place on the hub written as a path.
        texts: a tuple of one or two strings per row.
        labels: the label column's values as the file types them, never missing; or what the task's data has instead.
        numbers: where the rows stand in the file, counted from 0; None for all of it.
    """

    name: str
    path: Path
    texts: list[tuple[str, ...]]
    labels: list[Any]
    numbers: list[int] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def row(self, index: int) -> str:
        """Where row `index` is, for messages: counted from 1, a header line not counted."""
        return f"{self.path}, row {(self.numbers[index] if self.numbers is not None else index) + 1}"

    def take(self, name: str, indexes: Sequence[int]) -> "Split":
        """Some of the rows, in their order in the file."""
        kept = sorted(indexes)
        return replace(
            self,
            name=name,
            texts=[self.texts[index] for index in kept],
            labels=[self.labels[index] for index in kept],
            numbers=[self.numbers[index] if self.numbers is not None else index for index in kept],
        )


def read_splits(spec: DataSpec) -> tuple[Split, Split]:
    """(train, validation) of a recipe.

    Raises:
        MeloraError: see read_split.
    """
    rows = read_split("train", place_of(spec, "train"), spec)
    if spec.holdout is None:
        train, validation = rows, read_split("validation", place_of(spec, "validation"), spec)
    else:
        train, validation = hold_out(rows, spec)
    return at_most(train, spec.max_train_rows, spec), at_most(validation, spec.max_validation_rows, spec)


def read_validation(spec: DataSpec) -> Split:
    """The rows that a recipe is scored on.

    Raises:
        MeloraError: see read_split.
    """
    if spec.holdout is not None:
        validation = hold_out(read_split("train", place_of(spec, "train"), spec), spec)[1]
    else:
        validation = read_split("validation", place_of(spec, "validation"), spec)
    return at_most(validation, spec.max_validation_rows, spec)


def read_split(name: str, path: str | Path | HubSplit, spec: DataSpec) -> Split:
    """Read all rows of one file, or of one split on the hub.

    Args:
        name: "train" or "validation".
        path: the file, or the place on the hub.
        spec: which columns to take.

    Raises:
        MeloraError: the file is missing, empty, of an unknown kind or damaged; a column is missing; a text or label is.
    """
    file = Path(str(path)).expanduser()
    table = load_hub_split(name, path) if isinstance(path, HubSplit) else _read_table(name, file, spec)
    if table.num_rows == 0:
        raise MeloraError(f"data.{name} {file}: has no rows")
    texts, labels = read_rows(spec, name, file, table)
    return Split(name, file, texts, labels)


def hold_out(rows: Split, spec: DataSpec) -> tuple[Split, Split]:
    """(train, validation) of training rows, by the section's holdout; the same rows for the same rows_seed.

    Raises:
        MeloraError: nothing would be left of one of the two.
    """
    share = spec.holdout or 0.0
    count = round(share * len(rows)) if share < 1 else int(share)
    if not 0 < count < len(rows):
        raise MeloraError(
            f"data.holdout: {share:g} makes {count} of the {len(rows)} rows of {rows.path}; choose another"
        )
    drawn = _drawn(len(rows), spec.rows_seed)
    return rows.take("train", drawn[count:]), rows.take("validation", drawn[:count])


def at_most(split: Split, most: int | None, spec: DataSpec) -> Split:
    """The split, or so many of its rows, drawn by the section's rows_seed."""
    if most is None or most >= len(split):
        return split
    return split.take(split.name, _drawn(len(split), spec.rows_seed)[:most])


def _drawn(rows: int, seed: int) -> list[int]:
    # RandomState, whose stream numpy promises never to change: the part that a result names stays that part.
    order: list[int] = np.random.RandomState(seed).permutation(rows).tolist()
    return order


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
    kind = kind_of(file)
    reader = _READERS.get(kind) if kind != ".parquet" or file.suffix.lower() != COMPRESSED else None
    if not file.is_file():
        raise MeloraError(f"data.{name} {file}: no such file (paths are taken from the current folder, {Path.cwd()})")
    if reader is None:
        raise MeloraError(f"data.{name} {file}: unknown kind of file; there is {', '.join(_READERS)}, and .gz of texts")
    if file.stat().st_size == 0:
        raise MeloraError(f"data.{name} {file}: the file is empty")
    try:
        return reader(file, spec)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise MeloraError(f"data.{name} {file}: not a readable {kind} file: {one_line(error)[:200]}") from None


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
