"""Records as a Parquet file, a row each, and back."""

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

from ...errors import MeloraError
from ..record import Point, Record

_NAMES = [field.name for field in dataclasses.fields(Record)]


def parquet_of(records: Sequence[Record]) -> bytes:
    """The file's content: a column for each field of Record, in its order.

    `points` is a list of structs, `test_metrics` a map, `settings` JSON (its values are of several types). Text that is
    no valid Unicode (a lone surrogate, of a file name in an error message) is written with escapes.
    """
    import pyarrow
    from pyarrow import parquet

    rows = [_row(record) for record in records]
    columns = {name: [row[name] for row in rows] for name in _NAMES}
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns, schema=_schema()), file, compression="zstd")
    return file.getvalue()


def read_records(path: Path) -> list[Record]:
    """The records of a results.parquet, in its order.

    Raises:
        MeloraError: it can't be read as Parquet, or its columns are not those of a Record.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        # Of these bytes alone: given a path, pyarrow would take names of folders above it for columns.
        table = parquet.read_table(io.BytesIO(path.read_bytes()))
    except (OSError, pyarrow.ArrowException) as error:
        raise MeloraError(f"{path}: can't be read as Parquet: {' '.join(str(error).split())}") from error
    if table.schema != _schema():
        found, wanted = set(table.column_names), set(_NAMES)
        raise MeloraError(
            f"{path}: not the results of this version of melora compare; missing columns: "
            f"{sorted(wanted - found) or 'none'}, unknown columns: {sorted(found - wanted) or 'none'}"
            + ("" if found != wanted else ", but some of another type or in another place")
        )
    return [_record(row) for row in table.to_pylist()]


def _schema() -> Any:
    import pyarrow

    text, whole, real = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    plain = {str: text, int: whole, float: real, bool: pyarrow.bool_()}
    point = [(name, plain[_without_none(kind)]) for name, kind in get_type_hints(Point).items()]
    special = {
        "status": text,
        "settings": text,
        "test_metrics": pyarrow.map_(text, real),
        "points": pyarrow.list_(pyarrow.struct(point)),
    }
    hints = get_type_hints(Record)
    return pyarrow.schema([(name, special.get(name) or plain[_without_none(hints[name])]) for name in _NAMES])


def _without_none(kind: Any) -> Any:
    """int of int | None."""
    parts = [part for part in getattr(kind, "__args__", (kind,)) if part is not type(None)]
    return parts[0]


def _row(record: Record) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in _NAMES}
    row["settings"] = json.dumps(record.settings)
    row["test_metrics"] = [(_valid(name), value) for name, value in record.test_metrics.items()]
    row["points"] = [dataclasses.asdict(point) for point in record.points]
    return {name: _valid(value) if isinstance(value, str) else value for name, value in row.items()}


def _valid(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _record(row: dict[str, Any]) -> Record:
    return Record(
        **row
        | {
            "settings": json.loads(row["settings"]),
            "test_metrics": dict(row["test_metrics"]),
            "points": tuple(Point(**point) for point in row["points"]),
        }
    )
