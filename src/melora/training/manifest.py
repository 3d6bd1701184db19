"""A folder's manifest: size and SHA-256 of every file in it, so that a partial or damaged folder is never loaded."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def write_manifest(folder: Path, **facts: Any) -> None:
    """Bring every file of the folder to the disk, then write its manifest, which is there only if all the rest is.

    Args:
        folder: nothing may write to it any more.
        facts: plain values to keep in the manifest beside `files`.
    """
    sync_files(folder)
    names = [path for path in _files(folder) if path.name != MANIFEST or path.parent != folder]
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)} for path in names
    }
    content = {**facts, "files": files}
    # No newline at the end: a manifest cut by a single byte is no JSON any more.
    text = json.dumps({**content, "sha256": _digest(content)}, indent=1)
    temporary = folder / f".{MANIFEST}"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST)
    sync_folder(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `write_manifest` wrote: its facts, and `files`.

    Raises:
        ValueError: it is missing or damaged; the message is the reason, such as "manifest.json is missing".
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{MANIFEST} is not readable ({type(error).__name__}: {error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise ValueError(f"{MANIFEST} lists no files")
    expected, found = content.pop("sha256", None), _digest(content)
    if expected != found:
        raise ValueError(f"{MANIFEST} has SHA-256 {found[:12]}, not {str(expected)[:12]} as it says itself")
    return content


def verify(folder: Path, *, content: bool = True) -> dict[str, Any]:
    """The folder's manifest, once every file in it was found to be as it says.

    Args:
        folder: what to check.
        content: read and hash the files too; False looks at their sizes alone.

    Raises:
        ValueError: a file is missing or differs; the message names it, what was expected and what was found.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            found = _sha256(path) if content and size == expected["size"] else expected["sha256"]
        except FileNotFoundError:
            raise ValueError(f"{name} is missing, expected {expected['size']} bytes") from None
        except OSError as error:
            raise ValueError(f"{name} is not readable ({error})") from None
        if size != expected["size"]:
            raise ValueError(f"{name} has {size} bytes, expected {expected['size']}")
        if found != expected["sha256"]:
            raise ValueError(f"{name} has SHA-256 {found[:12]}, expected {expected['sha256'][:12]}")
    return manifest


def sync_files(folder: Path) -> None:
    """Wait until every file and folder below, and the folder itself, is on the disk."""
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Wait until the names in the folder are on the disk: a rename is safe only then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
