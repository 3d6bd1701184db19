import json
from pathlib import Path

import pytest

from melora.training.manifest import MANIFEST, verify, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a.bin").write_bytes(b"0123456789")
    (tmp_path / "empty").write_bytes(b"")
    write_manifest(tmp_path, step=12)
    return tmp_path


def test_what_was_written_verifies(folder: Path) -> None:
    manifest = verify(folder)
    assert manifest["step"] == 12
    assert {name: file["size"] for name, file in manifest["files"].items()} == {"empty": 0, "weights/a.bin": 10}


def test_writing_it_again_leaves_the_manifest_itself_out(folder: Path) -> None:
    write_manifest(folder, step=13)
    assert verify(folder)["step"] == 13
    assert MANIFEST not in verify(folder)["files"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", r"weights/a\.bin has 0 bytes, expected 10"),
        (b"0123456780", r"weights/a\.bin has SHA-256 [0-9a-f]{12}, expected [0-9a-f]{12}"),
        (b"0123456789x", r"weights/a\.bin has 11 bytes, expected 10"),
        (None, r"weights/a\.bin is missing, expected 10 bytes"),
    ],
)
def test_a_file_that_differs_is_named(folder: Path, content: bytes | None, told: str) -> None:
    file = folder / "weights" / "a.bin"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=told):
        verify(folder)


def test_sizes_alone(folder: Path) -> None:
    (folder / "weights" / "a.bin").write_bytes(b"9876543210")
    verify(folder, content=False)
    (folder / "weights" / "a.bin").write_bytes(b"98765")
    with pytest.raises(ValueError, match="has 5 bytes, expected 10"):
        verify(folder, content=False)


def test_a_manifest_cut_anywhere_is_no_manifest(folder: Path) -> None:
    content = (folder / MANIFEST).read_bytes()
    for size in range(len(content)):
        (folder / MANIFEST).write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"manifest\.json is not readable"):
            verify(folder)


def test_a_manifest_that_was_changed_is_no_manifest(folder: Path) -> None:
    values = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**values, "step": 13}))
    with pytest.raises(ValueError, match=r"manifest\.json has SHA-256 .*, not .* as it says itself"):
        verify(folder)
    (folder / MANIFEST).write_text("[]")
    with pytest.raises(ValueError, match=r"manifest\.json lists no files"):
        verify(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"manifest\.json is missing"):
        verify(folder)
