"""Fetching PEFT's tests, without the registry."""

import tarfile
from pathlib import Path

import pytest

from conformance import fetch


def archive(folder: Path, *files: str) -> Path:
    source = folder / "source" / "peft-9.9"
    for file in files:
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).write_text("x = 1\n")
    path = folder / "peft-9.9.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(source, "peft-9.9")
    return path


def test_fetches_once_and_makes_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = archive(tmp_path, "tests/test_x.py", "setup.py")
    monkeypatch.setattr(fetch, "download", lambda version, folder: made)
    root = fetch.fetch_tests("9.9", tmp_path / "cache")
    assert sorted(path.name for path in (root / "tests").iterdir()) == ["__init__.py", "test_x.py"]

    def fails(version: str, folder: Path) -> Path:
        raise AssertionError("the cache is not used")

    monkeypatch.setattr(fetch, "download", fails)
    assert fetch.fetch_tests("9.9", tmp_path / "cache") == root
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["peft-9.9"]


def test_an_archive_without_tests_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = archive(tmp_path, "setup.py")
    monkeypatch.setattr(fetch, "download", lambda version, folder: made)
    with pytest.raises(RuntimeError, match=r"peft-9\.9\.tar\.gz: no tests in it"):
        fetch.fetch_tests("9.9", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
