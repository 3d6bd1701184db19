from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from experiments.dolly_split import TEST_ROWS, main


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "all.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"instruction": [f"do {i}" for i in range(1500)]}), file)
    return file


def _rows(file: Path) -> list[str]:
    return [row["instruction"] for row in pyarrow.parquet.read_table(file).to_pylist()]


def test_every_row_is_in_one_part(source: Path, tmp_path: Path) -> None:
    assert main(source, tmp_path / "parts") == 0
    train, test = _rows(tmp_path / "parts" / "train.parquet"), _rows(tmp_path / "parts" / "test.parquet")
    assert (len(train), len(test)) == (500, TEST_ROWS)
    assert sorted(train + test) == sorted(f"do {i}" for i in range(1500))
    assert main(source, tmp_path / "again") == 0
    assert _rows(tmp_path / "again" / "test.parquet") == test


def test_without_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tmp_path / "none.parquet", tmp_path / "parts") == 2
    assert "no such file" in capsys.readouterr().err
    assert not (tmp_path / "parts").exists()
