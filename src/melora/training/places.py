"""Where a split's rows are: a file of one's own, a file in a folder of splits, or the hub."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MeloraError
from .dataspec import DataSpec
from .schema import nearest, one_line

KINDS = (".csv", ".tsv", ".jsonl", ".parquet")
COMPRESSED = ".gz"
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class HubSplit:
    """A split of a data set on the hub; `str` of it is for messages."""

    path: str
    subset: str | None
    split: str
    revision: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.path, self.subset, self.split) if part)


def kind_of(file: Path) -> str:
    """A data file's ending, without .gz: what says how to read it."""
    return (Path(file.stem) if file.suffix.lower() == COMPRESSED else file).suffix.lower()


def place_of(spec: DataSpec, name: str, split: str | None = None) -> Path | HubSplit:
    """Where the rows of `train` or `validation` are.

    A name that ends as a data file does is a file, whatever `path` says; any other is a split of `path`.

    Args:
        spec: the recipe's data section.
        name: "train" or "validation".
        split: in place of what the section calls it.

    Raises:
        MeloraError: `path` is neither a folder nor a hub id, or the folder has no such split.
    """
    value = str(split or getattr(spec, name))
    file = Path(value).expanduser()
    if spec.path is None or kind_of(file) in KINDS:
        return file
    folder = Path(spec.path).expanduser()
    if folder.is_dir():
        return _file_in(folder / (spec.subset or ""), name, value)
    if _HUB_ID.fullmatch(spec.path):
        return HubSplit(spec.path, spec.subset, value, spec.revision)
    raise MeloraError(
        f"data.path {spec.path}: no such folder, nor a hub id (owner/name); paths are taken from the current folder, "
        f"{Path.cwd()}"
    )


def described(spec: DataSpec, name: str) -> str:
    """What the recipe says of a split's place, for people; the disk is not looked at."""
    if name == "validation" and spec.holdout is not None:
        return f"{described(spec, 'train')} (held out)"
    value = str(getattr(spec, name))
    if spec.path is None or kind_of(Path(value)) in KINDS:
        return value
    return str(HubSplit(spec.path, spec.subset, value))


def is_at_hand(spec: DataSpec) -> bool:
    """Whether the validation rows can be read without the hub."""
    try:
        place = place_of(spec, "train" if spec.holdout is not None else "validation")
    except MeloraError:
        return False
    return isinstance(place, Path) and place.is_file()


def _file_in(folder: Path, name: str, split: str) -> Path:
    if not folder.is_dir():
        there = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()]
        raise MeloraError(f"data.path {folder}: no such folder; {nearest(folder.name, there)}")
    candidates = [folder / f"{split}{kind}{end}" for kind in KINDS for end in ("", COMPRESSED)]
    for file in candidates:
        if file.is_file():
            return file
    splits = {entry.name.split(".")[0] for entry in folder.iterdir() if kind_of(entry) in KINDS}
    raise MeloraError(
        f"data.{name} {folder}: no file {split} with an ending of {', '.join(KINDS)}; {nearest(split, splits)}"
    )


def load_hub_split(name: str, place: HubSplit) -> Any:
    """The split as a pyarrow table; class labels are whole numbers there.

    Raises:
        MeloraError: the hub can't be reached and its cache has no such data, or there is no such data set, subset or
            split.
    """
    import datasets

    try:
        rows = datasets.load_dataset(place.path, place.subset, split=place.split, revision=place.revision)
    except Exception as error:  # whatever the HTTP client in use raises when there is no network, and datasets' own
        raise MeloraError(
            f"data.{name} {place}: can't be loaded from the Hugging Face hub ({one_line(error)[:200]}); check the name "
            "and the network, or give a folder that holds the files with data.path=FOLDER"
        ) from None
    return rows.with_format("arrow")[:]
