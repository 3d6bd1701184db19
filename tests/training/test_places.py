from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

from melora import MeloraError
from melora.training.data import read_splits
from melora.training.dataspec import DataSpec
from melora.training.places import HubSplit, described, is_at_hand, place_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "set" / "part"
    inside.mkdir(parents=True)
    for name, rows in (("train", 5), ("validation", 2)):
        columns = {"text": [f"{name} {row}" for row in range(rows)], "label": [row % 2 for row in range(rows)]}
        pyarrow.parquet.write_table(pyarrow.table(columns), inside / f"{name}.parquet")
        pyarrow.csv.write_csv(pyarrow.table(columns), inside / f"{name}.csv")
    return tmp_path / "set"


def test_splits_of_a_folder(folder: Path) -> None:
    spec = DataSpec(path=str(folder), subset="part")
    train, validation = read_splits(spec)
    assert (len(train), len(validation)) == (5, 2)
    assert train.path == folder / "part" / "train.csv"
    assert described(spec, "validation") == f"{folder}/part/validation"
    assert is_at_hand(spec)


def test_a_file_is_a_file_whatever_the_path(folder: Path) -> None:
    file = folder / "part" / "validation.parquet"
    spec = DataSpec(path=str(folder), subset="part", validation=str(file))
    assert place_of(spec, "validation") == file
    assert described(spec, "validation") == str(file)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"subset": "prat"}, "no such folder; did you mean part?"),
        ({"subset": "part", "train": "trian"}, "no file trian with an ending of .csv"),
        ({"path": "none/of/these"}, "data.path none/of/these: no such folder, nor a hub id"),
    ],
)
def test_what_is_not_there_is_named(folder: Path, keys: dict[str, Any], told: str) -> None:
    spec = DataSpec(**{"path": str(folder), **keys})
    with pytest.raises(MeloraError) as caught:
        place_of(spec, "train")
    assert told in str(caught.value)
    assert not is_at_hand(DataSpec(**{"path": str(folder), **keys, "validation": "none"}))


def test_splits_of_the_hub_are_loaded_by_datasets(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The hub is replaced by a folder, which datasets loads by the same call."""
    load, asked = datasets.load_dataset, []

    def from_folder(path: str, name: str | None, **options: Any) -> Any:
        asked.append((path, name, options.pop("revision")))
        files = {split: str(folder / "part" / f"{split}.parquet") for split in ("train", "validation")}
        return load("parquet", data_files=files, cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    spec = DataSpec(path="owner/name", subset="part", revision="abc", max_train_rows=3)
    train, validation = read_splits(spec)
    assert asked == [("owner/name", "part", "abc")] * 2
    assert len(train) == 3
    assert validation.texts == [("validation 0",), ("validation 1",)]
    assert validation.labels == [0, 1]
    assert str(validation.path) == described(spec, "validation") == "owner/name/part/validation"
    assert not is_at_hand(spec)


def test_a_hub_out_of_reach_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub\n(offline)")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    spec = DataSpec(path="owner/name")
    assert place_of(spec, "train") == HubSplit("owner/name", None, "train")
    with pytest.raises(MeloraError, match="can't be loaded from the Hugging Face hub") as caught:
        read_splits(spec)
    assert "\n" not in str(caught.value)
    assert "data.path=FOLDER" in str(caught.value)
