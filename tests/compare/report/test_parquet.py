"""Records in a Parquet file and back, whatever they hold."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from melora.compare.record import Point, Record
from melora.compare.report import read_records
from melora.compare.report.parquet import parquet_of
from melora.errors import MeloraError

TEXT = st.text(st.characters(exclude_categories=("Cs",)))
NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
WHOLE = st.integers(-(2**63), 2**63 - 1)
POINTS = st.builds(
    Point,
    step=WHOLE,
    epoch=NUMBERS,
    loss=st.none() | NUMBERS,
    validation_loss=st.none() | NUMBERS,
    validation_score=st.none() | NUMBERS,
)
BY_NAME = {
    "status": st.sampled_from(["done", "failed", "missing"]),
    "settings": st.dictionaries(TEXT, NUMBERS | WHOLE | TEXT | st.booleans(), max_size=3),
    "test_metrics": st.dictionaries(TEXT, NUMBERS, max_size=3),
    "points": st.lists(POINTS, max_size=3).map(tuple),
}
BY_TYPE = {str: TEXT, int: WHOLE, float: NUMBERS, bool: st.booleans()}
BY_TYPE |= {kind | None: st.none() | values for kind, values in BY_TYPE.items()}
RECORDS = st.builds(
    Record,
    **{name: BY_NAME[name] if name in BY_NAME else BY_TYPE[kind] for name, kind in get_type_hints(Record).items()},
)


def there_and_back(records: list[Record], folder: Path) -> list[Record]:
    (folder / "results.parquet").write_bytes(parquet_of(records))
    return read_records(folder / "results.parquet")


@settings(deadline=None, max_examples=30)
@given(st.lists(RECORDS, max_size=4))
def test_records_come_back_exactly(tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> None:
    found = there_and_back(records, tmp_path_factory.getbasetemp())
    # By their text, in which NaN equals NaN, and 1, 1.0 and True differ.
    assert list(map(repr, found)) == list(map(repr, records))


def test_a_column_for_each_field(made_up: SimpleNamespace, tmp_path: Path) -> None:
    records = made_up.records()
    (tmp_path / "results.parquet").write_bytes(parquet_of(records))
    table = parquet.read_table(tmp_path / "results.parquet")
    assert table.column_names == [field.name for field in dataclasses.fields(Record)]
    assert table.num_rows == len(records)
    assert table["test_score"].to_pylist() == [record.test_score for record in records]
    assert pyarrow.types.is_floating(table.schema.field("test_score").type)
    assert table["points"][0].as_py()[1]["validation_score"] == records[0].points[1].validation_score


def test_text_that_is_no_unicode_is_written_with_escapes(made_up: SimpleNamespace, tmp_path: Path) -> None:
    record = dataclasses.replace(made_up.records()[0], reason="no such file: \udcff", test_metrics={"\ud800": 1.0})
    (found,) = there_and_back([record], tmp_path)
    assert (found.reason, found.test_metrics) == ("no such file: \\udcff", {"\\ud800": 1.0})


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    parquet.write_table(pyarrow.table({"run": ["a"], "bogus": [1]}), path)
    with pytest.raises(
        MeloraError, match=r"other.parquet: not the results .*missing.*'task'.*unknown columns: \['bogus'"
    ):
        read_records(path)
    path.write_bytes(parquet_of([]))
    table = parquet.read_table(path)
    parquet.write_table(table.set_column(0, "run", pyarrow.array([], pyarrow.int64())), path)
    with pytest.raises(MeloraError, match="missing columns: none, unknown columns: none, but some of another type"):
        read_records(path)


def test_a_file_that_is_no_parquet_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(MeloraError, match=r"absent.parquet: can't be read") as refused:
        read_records(tmp_path / "absent.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"not this")
    with pytest.raises(MeloraError, match=r"bad.parquet: can't be read") as other:
        read_records(tmp_path / "bad.parquet")
    assert not any("\n" in str(error.value) for error in (refused, other))


def test_names_of_folders_are_no_columns(tmp_path: Path) -> None:
    folder = tmp_path / "task=elsewhere"
    folder.mkdir()
    assert there_and_back([], folder) == []
