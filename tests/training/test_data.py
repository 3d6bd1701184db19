from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from melora import MeloraError
from melora.training.data import read_split
from melora.training.recipe import DataSpec


def spec(**changes: Any) -> DataSpec:
    return DataSpec(**{"train": "-", "validation": "-", "text": ["text"], "label": "label", **changes})


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def make(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return make


def test_every_kind_of_file_gives_the_same(write: Callable[[str, str], Path], tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a, b", "007"], "label": [1.5, 2.0]}), tmp_path / "x.parquet")
    files = [
        write("x.csv", 'text,label\n"a, b",1.5\n007,2\n'),
        write("x.tsv", "text\tlabel\na, b\t1.5\n007\t2\n"),
        write("x.jsonl", '{"text": "a, b", "label": 1.5}\n{"text": "007", "label": 2}\n'),
        tmp_path / "x.parquet",
    ]
    for file in files:
        split = read_split("train", file, spec())
        assert split.texts == [("a, b",), ("007",)], file
        assert split.labels == [1.5, 2.0], file


def test_pairs_of_texts_and_line_breaks(write: Callable[[str, str], Path]) -> None:
    file = write("x.csv", 'a,b,label\n"one\ntwo",three,yes\n')
    split = read_split("train", file, spec(text=["a", "b"]))
    assert split.texts == [("one\ntwo", "three")]
    assert split.labels == ["yes"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("x.csv", "", "the file is empty"),
        ("x.csv", "text,label\n", "has no rows"),
        ("x.csv", "txt,label\na,1\n", "no column 'text'; the columns are txt, label (did you mean txt?)"),
        ("x.csv", "text,label\na,1,2\n", "not a readable .csv file"),
        ("x.csv", "text,label\na,1\nb,\n", "row 2: column 'label' is missing; fill it in or remove the row"),
        ("x.jsonl", '{"text": "a", "label": 1}\n{"label": 1}\n', "row 2: column 'text' is missing"),
        ("x.jsonl", '{"text": 3, "label": 1}\n', "row 1: column 'text' holds 3, not text"),
        ("x.jsonl", "{", "not a readable .jsonl file"),
        ("x.parquet", "nonsense", "not a readable .parquet file"),
        ("x.xlsx", "nonsense", "unknown kind of file; there is .csv, .tsv, .jsonl, .parquet"),
    ],
)
def test_what_is_wrong_is_named(write: Callable[[str, str], Path], name: str, text: str, told: str) -> None:
    file = write(name, text)
    with pytest.raises(MeloraError) as caught:
        read_split("train", file, spec())
    assert told in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(MeloraError, match=r"data.validation .*none.csv: no such file"):
        read_split("validation", tmp_path / "none.csv", spec())
