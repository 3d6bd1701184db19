"""PEFT's tests: fetched by name and version with pip, unpacked into the cache."""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path


def fetch_tests(version: str, cache: Path) -> Path:
    """The folder peft-VERSION of PEFT's source archive under `cache`, with a `tests` package in it.

    Raises:
        RuntimeError: pip cannot fetch the archive, or it holds no tests; the message holds pip's own words.
    """
    root = cache / f"peft-{version}"
    if not (root / "tests" / "__init__.py").is_file():
        with tempfile.TemporaryDirectory(dir=_made(cache)) as temporary:
            unpacked = unpack(download(version, Path(temporary)), Path(temporary))
            shutil.rmtree(root, ignore_errors=True)
            unpacked.rename(root)
    return root


def download(version: str, folder: Path) -> Path:
    """Let pip put the source archive of this version of PEFT into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "peft"]
    done = subprocess.run([*command, "--dest", str(folder), f"peft=={version}"], capture_output=True, text=True)
    archives = list(folder.glob("peft-*.tar.gz"))
    if done.returncode or not archives:
        raise RuntimeError(f"pip could not fetch the source archive of peft {version}: {done.stderr.strip()}")
    return archives[0]


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack into `folder` and make a package of the tests, whose __init__.py the archive leaves out."""
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    tests = folder / archive.name.removesuffix(".tar.gz") / "tests"
    if not tests.is_dir():
        raise RuntimeError(f"{archive.name}: no tests in it")
    (tests / "__init__.py").touch()
    return tests.parent


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
