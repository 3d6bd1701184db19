"""The movie-review snippets of VADER's authors: fetched through pip, checked, split, written as Parquet.

The data: 10,605 sentences from reviews on rotten.tomatoes.com, each with the mean of the human ratings that it got,
from -4 (extremely negative) to 4 (extremely positive). They lie in the source archive of the package vaderSentiment,
not in its wheel. Hutto, C.J. & Gilbert, E.E. (2014), VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
Social Media Text, ICWSM-14.

The split needs no seed: a row is held out when the SHA-256 of its text, read as a fraction of 1, is below a tenth. A
row's side therefore depends on its own text alone, and two rows with the same text can't stand on both sides.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import pandas as pd

PACKAGE = "vaderSentiment"
VERSION = "3.3.2"
ARCHIVE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
ROWS = 10_605
HELD_OUT = 0.1
FOLDER = Path(".cache/movie-reviews")

_INNER = f"{PACKAGE}-{VERSION}/additional_resources/hutto_ICWSM_2014.tar.gz"
_MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_RECORD = "source.json"
_FILES = ("train.parquet", "validation.parquet")


class DataError(Exception):
    """The data can't be had as it is pinned; one line that says what, where and what to do."""


@dataclass(frozen=True)
class Snippet:
    """One rated sentence; `rating` is the raters' mean, from -4 to 4."""

    id: int
    text: str
    rating: float


def prepare(folder: Path = FOLDER) -> Path:
    """Make sure that `folder` holds train.parquet and validation.parquet (columns id, text, rating), and return it.

    Files that were written before and are still what was written are left alone, without a download. The folder appears
    whole or not at all. Raises DataError when the archive can't be fetched or isn't the pinned one.
    """
    if is_complete(folder):
        return folder
    with tempfile.TemporaryDirectory() as download:
        archive = fetch(Path(download))
        write(parse(extract(archive)), folder)
    return folder


def fetch(folder: Path, sha256: str = ARCHIVE_SHA256) -> Path:
    """Download the source archive into `folder` through pip, with the machine's own index settings."""
    requirement = folder / "requirements.txt"
    requirement.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{sha256}\n")
    # --require-hashes: pip compares the archive before it runs the archive's setup.py for the metadata.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", PACKAGE, "--require-hashes", "--requirement", str(requirement), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"pip ended with code {done.returncode}"
        raise DataError(f"{PACKAGE} {VERSION}'s source archive could not be fetched through pip: {reason}")
    return folder / f"{PACKAGE}-{VERSION}.tar.gz"


def extract(archive: Path, sha256: str = ARCHIVE_SHA256) -> str:
    """The snippets' file out of the archive inside the archive, as text."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise DataError(f"{archive}: SHA-256 is {found}, pinned is {sha256}; nothing was unpacked: fetch it again")
    with tarfile.open(archive) as outer, tarfile.open(fileobj=_member(outer, _INNER)) as inner:
        return _member(inner, _MEMBER).read().decode("utf-8")


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    member = archive.extractfile(name)
    if member is None:
        raise DataError(f"{name} is not a file in the archive")
    return member


def parse(text: str, rows: int = ROWS) -> list[Snippet]:
    """Lines of id, mean rating and text, separated by tabs. Raises DataError unless there are `rows` of them."""
    # Not splitlines(): it also breaks at characters that may stand inside a sentence.
    fields = [line.rstrip("\r").split("\t") for line in text.split("\n") if line.strip()]
    snippets = [Snippet(int(number), sentence.strip(), float(rating)) for number, rating, sentence in fields]
    if len(snippets) != rows:
        raise DataError(f"{_MEMBER} holds {len(snippets):,} snippets, not {rows:,}: not the archive that is known")
    return snippets


def is_held_out(text: str) -> bool:
    """Whether a snippet with this text belongs to the validation split; see the module's docstring for the rule."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT * 2**64


def write(snippets: list[Snippet], folder: Path) -> None:
    """Write both splits and a record of their checksums, in the snippets' own order; all of it or nothing."""
    frame = pd.DataFrame([asdict(snippet) for snippet in snippets])
    held_out = frame["text"].map(is_held_out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, so that the rename stays on one file system.
    half_written = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, rows in zip(_FILES, (frame[~held_out], frame[held_out]), strict=True):
            rows.to_parquet(half_written / name, index=False)
        record = {name: hashlib.sha256((half_written / name).read_bytes()).hexdigest() for name in _FILES}
        (half_written / _RECORD).write_text(json.dumps({"archive": ARCHIVE_SHA256, "files": record}, indent=2) + "\n")
        half_written.chmod(0o755)  # mkdtemp's folder is its owner's alone
        shutil.rmtree(folder, ignore_errors=True)  # what is left of another version, or half a folder
        os.replace(half_written, folder)
    finally:
        shutil.rmtree(half_written, ignore_errors=True)


def is_complete(folder: Path) -> bool:
    """Whether `folder` holds what write() wrote from the pinned archive, byte for byte."""
    if not (folder / _RECORD).is_file():
        return False
    record = json.loads((folder / _RECORD).read_text())
    return bool(record["archive"] == ARCHIVE_SHA256) and all(
        (folder / name).is_file() and hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        for name, digest in record["files"].items()
    )


def main() -> None:
    """Prepare the data where the demo's recipes expect it, and say how much there is."""
    try:
        folder = prepare()
    except DataError as error:
        sys.exit(f"error: {error}")
    train, validation = (len(pd.read_parquet(folder / name)) for name in _FILES)
    print(f"{folder}: {train:,} snippets to train on, {validation:,} held out")


if __name__ == "__main__":
    main()
