import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from melora import MeloraError
from melora.training.data import read_split, read_splits, read_validation
from melora.training.recipe import DataSpec

DRAWN = [3, 17, 27, 55, 56, 74, 76, 87, 94, 96]


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
    for file in files[:3]:
        packed = tmp_path / f"{file.name}.gz"
        packed.write_bytes(gzip.compress(file.read_bytes()))
        files.append(packed)
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


@pytest.fixture
def numbered(write: Callable[[str, str], Path]) -> dict[str, str]:
    """Rows 1 to 100 to train on, and 20 to validate."""
    train = write("train.csv", "text,label\n" + "".join(f"row {i},{i % 2}\n" for i in range(1, 101)))
    validation = write("validation.csv", "text,label\n" + "".join(f"other {i},{i % 2}\n" for i in range(1, 21)))
    return {"train": str(train), "validation": str(validation)}


def test_drawn_rows_are_fixed_nested_and_keep_their_numbers(numbered: dict[str, str]) -> None:
    small = read_splits(spec(**numbered, max_train_rows=10))[0]
    large = read_splits(spec(**numbered, max_train_rows=30, max_validation_rows=5))[0]
    assert (len(small), len(large)) == (10, 30)
    assert set(small.texts) < set(large.texts)
    assert small.texts == read_splits(spec(**numbered, max_train_rows=10))[0].texts
    assert small.texts != read_splits(spec(**numbered, max_train_rows=10, rows_seed=1))[0].texts
    for index, (text,) in enumerate(small.texts):
        assert small.row(index).endswith(f"train.csv, {text}")
    # Written down, so that a new version of numpy or of this code can't move a part that results name.
    assert [int(text.split()[1]) for (text,) in small.texts] == DRAWN
    assert len(read_splits(spec(**numbered, max_train_rows=1000))[0]) == 100


@pytest.mark.parametrize(("share", "held"), [(0.1, 10), (25, 25)])
def test_held_out_rows_come_from_training_and_are_not_trained_on(
    numbered: dict[str, str], share: float, held: int
) -> None:
    chosen = spec(train=numbered["train"], validation=None, holdout=share)
    train, validation = read_splits(chosen)
    assert (len(train), len(validation)) == (100 - held, held)
    assert not set(train.texts) & set(validation.texts)
    assert (train.name, validation.name) == ("train", "validation")
    assert read_validation(chosen).texts == validation.texts
    fewer = read_splits(spec(**numbered, holdout=share, max_train_rows=7))
    assert set(fewer[0].texts) < set(train.texts)
    assert fewer[1].texts == validation.texts  # the same, whatever else is drawn; the file is not read


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"holdout": 0}, "data.holdout: must be a finite number above 0"),
        ({"holdout": 1.5}, "data.holdout: must be a share below 1 or a whole number of rows, got 1.5"),
        ({"holdout": 100}, "data.holdout: 100 makes 100 of the 100 rows"),
        ({"holdout": 0.001}, "data.holdout: 0.001 makes 0 of the 100 rows"),
        ({"max_train_rows": 0}, "data.max_train_rows: must be a finite number above 0"),
        ({"rows_seed": -1}, "data.rows_seed: must be from 0"),
        ({"subset": "rte"}, "data.subset: belongs to data.path, which is not set"),
        ({"train": None}, "data.train: is missing; give a file, or a folder or hub id in data.path"),
        ({"path": " "}, "data.path: is empty"),
    ],
)
def test_parts_that_cannot_be_are_named(numbered: dict[str, str], keys: dict[str, Any], told: str) -> None:
    with pytest.raises(MeloraError) as caught:
        read_splits(spec(**{**numbered, **keys}))
    assert str(caught.value).startswith(told)
