"""Reading the files of an adapter that may be hostile: nothing is followed, believed or built before it is bounded.

The bounds hold time under a second and memory under 100 MB for the worst file that passes them (tests/test_hostile.py
limits the process's memory). They are far above what adapters have: 560 tensors for all linear layers of a model of 80
layers is a 0.1 MB header.
"""

import json
import sys
from pathlib import Path
from typing import Any

from .errors import MeloraError

MAX_CONFIG_BYTES = 2 * 2**20
MAX_HEADER_BYTES = 8 * 2**20
MAX_TENSORS = 50_000
# Each comma and each bracket stands for at most one JSON value; a tensor's entry has 9 of them, 3 dimensions given.
_MAX_VALUES = 12 * MAX_TENSORS
_MAX_CONFIG_VALUES = 200_000
_MAX_NAME = 500


def own_file(folder: Path, name: str) -> Path | None:
    """The regular file `name` of a folder, or None where there is none.

    Raises:
        MeloraError: it is a link that leaves the folder. The links of huggingface_hub's cache (snapshots/REVISION/NAME
            to blobs/ of the same repository) are its own layout, and followed.
    """
    file = folder / name
    if not file.is_file():
        return None
    root, target = folder.resolve(), file.resolve()
    blobs = root.parent.parent / "blobs"
    if not target.is_relative_to(root) and not (root.parent.name == "snapshots" and target.parent == blobs):
        raise MeloraError(f"{file}: is a link out of its folder, to {target}; copy the file itself into the folder")
    return file


def read_json(file: Path) -> Any:
    """The content of a JSON file of at most 2 MiB, in which no key stands twice.

    Raises:
        MeloraError: the file is too large, no JSON, nested too deep, or has a key twice.
    """
    size = file.stat().st_size
    if size > MAX_CONFIG_BYTES:
        raise MeloraError(
            f"{file}: is {size:,} bytes, more than the {MAX_CONFIG_BYTES:,} that an adapter's config may be"
        )
    return _parse(file, file.read_bytes(), _MAX_CONFIG_VALUES)


def read_header(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file, from its header alone.

    The format (safetensors 0.8): 8 bytes for the header's length, little-endian; the header, JSON; the data.

    Raises:
        MeloraError: the header is longer than the file or than 8 MiB, is no valid JSON, names a tensor twice, or names
            or describes one in a way that no adapter does; or there are more than 50,000 tensors.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise MeloraError(
                f"{file}: truncated or damaged (header of {length} bytes in a file of {size}); copy or "
                "download it again"
            )
        if length > MAX_HEADER_BYTES:
            raise MeloraError(
                f"{file}: its header is {length:,} bytes, more than the {MAX_HEADER_BYTES:,} allowed; "
                "an adapter of that many tensors is not read"
            )
        content = stream.read(length)
    entries = _parse(file, content, _MAX_VALUES)
    if not isinstance(entries, dict):
        raise MeloraError(f"{file}: truncated or damaged (the header is no JSON object); copy or download it again")
    entries.pop("__metadata__", None)
    if len(entries) > MAX_TENSORS:
        raise MeloraError(f"{file}: holds {len(entries):,} tensors, more than the {MAX_TENSORS:,} allowed")
    return {name: _shape(file, name, entry) for name, entry in entries.items()}


def check_auto_mapping(values: Any, source: str) -> None:
    """Check `auto_mapping` of a config, from which peft.AutoPeftModel imports a module to find the base model's class.

    Importing a module runs it. So only modules of transformers, and modules that this process has loaded already, pass.

    Raises:
        MeloraError: any other module, or something that is no auto_mapping.
    """
    if values is None:
        return
    fields = ("base_model_class", "parent_library")
    if (
        not isinstance(values, dict)
        or set(values) != set(fields)
        or not all(
            isinstance(value, str) and all(part.isidentifier() for part in value.split("."))
            for value in values.values()
        )
    ):
        raise MeloraError(f"{source}auto_mapping must hold {' and '.join(fields)}, two Python names: remove it")
    library = values["parent_library"]
    if library not in sys.modules and library.partition(".")[0] != "transformers":
        raise MeloraError(
            f"{source}auto_mapping names the module {library}, not loaded yet: importing it would run it; "
            f"import {library} first if you trust it, or remove auto_mapping from the config"
        )


def _parse(file: Path, content: bytes, max_values: int) -> Any:
    """JSON of bounded size and depth. The bound on values is checked before a single one is built."""
    if sum(content.count(sign) for sign in (b",", b"[", b"{")) > max_values:
        raise MeloraError(f"{file}: holds more than {max_values:,} JSON values, which no adapter does")
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise MeloraError(f"{file}: its JSON is nested too deep; save or download the adapter again") from None
    except _DuplicateKeyError as error:
        raise MeloraError(
            f"{file}: has the key {str(error)[:_MAX_NAME]} twice, which is ambiguous; write it once"
        ) from None
    except ValueError as error:
        raise MeloraError(
            f"{file}: truncated or damaged, not valid JSON ({error}); save or download it again"
        ) from None


class _DuplicateKeyError(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(repr(key))
            seen.add(key)
    return found


def _shape(file: Path, name: str, entry: Any) -> tuple[int, ...]:
    """The shape of a header's entry, its name checked: it is a path of modules, and must not look like one of files."""
    parts = name.split(".")
    if len(name) > _MAX_NAME or not name.isprintable() or not all(parts) or "/" in name or "\\" in name:
        raise MeloraError(f"{file}: {name[:_MAX_NAME]!r} is no name of a tensor: save or download the adapter again")
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**32 for size in shape):
        raise MeloraError(f"{file}: truncated or damaged (tensor {name} has no valid shape); download it again")
    return tuple(shape)
