"""Dolly-15k in two parts: `python -m experiments.dolly_split` writes .cache/dolly/train.parquet and test.parquet.

Dolly comes as one file. A study needs rows that nothing is chosen on, apart from those that are held out to choose by.
"""

import sys
from pathlib import Path

import numpy
import pyarrow.parquet

TEST_ROWS = 1000
SEED = 0


def split(source: Path, folder: Path) -> None:
    """Write both parts, each through a temporary name; the same rows every time.

    Args:
        source: Dolly's rows as Parquet.
        folder: where train.parquet and test.parquet go.
    """
    table = pyarrow.parquet.read_table(source)
    order = numpy.random.default_rng(SEED).permutation(len(table))
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("test", order[:TEST_ROWS]), ("train", order[TEST_ROWS:])):
        temporary = folder / f".{name}.parquet"
        pyarrow.parquet.write_table(table.take(numpy.sort(rows)), temporary)
        temporary.replace(folder / f"{name}.parquet")


def main(source: Path = Path("../shared/data/dolly/train.parquet"), folder: Path = Path(".cache/dolly")) -> int:
    if not source.is_file():
        print(f"{source}: no such file; it is Dolly-15k as one Parquet file", file=sys.stderr)
        return 2
    split(source, folder)
    print(f"written: {folder}/train.parquet and {folder}/test.parquet")
    return 0


if __name__ == "__main__":
    sys.exit(main())
