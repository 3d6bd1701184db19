"""Where a base model comes from: a folder, an installed package that carries one, or the hub."""

import importlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import MeloraError
from .recipe import ModelSpec
from .schema import one_line

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class ModelSource:
    """A base model that was found.

    Attributes:
        name: as the recipe gives it.
        kind: where it was found.
        path: what from_pretrained takes: a folder, or for the hub the id.
        options: further arguments of from_pretrained.
    """

    name: str
    kind: Literal["folder", "package", "hub"]
    path: str
    options: dict[str, Any]

    @property
    def location(self) -> str:
        """The absolute path of a folder's model, or of its .gguf file where that was named."""
        named = Path(self.name).expanduser()
        return str((named if named.is_file() else Path(self.path)).absolute())

    def python(self) -> tuple[list[str], str]:
        """(import lines, arguments) that make from_pretrained load it in a Python example."""
        imports, path = [], repr(self.name)
        if self.kind == "package" and _has_path_function(self.name):
            imports, path = [f"import {self.name}"], f"{self.name}.get_model_path()"
        elif self.kind == "package":
            inside = "" if Path(self.path).name != "model" else ' + "/model"'
            imports = ["from importlib.util import find_spec"]
            path = f"find_spec({self.name!r}).submodule_search_locations[0]{inside}"
        file = self.options.get("gguf_file")
        if file is None:
            return imports, path
        return imports, f"{repr(self.path) if self.kind == 'folder' else path}, gguf_file={file!r}"


def find_model(spec: ModelSpec) -> ModelSource:
    """Find a base model. A folder or a package never touches the network.

    Raises:
        MeloraError: not found; what was tried is listed.
    """
    name = spec.name_or_path
    folder = Path(name).expanduser()
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": spec.trust_remote_code}
    if folder.is_dir() or (folder.suffix == ".gguf" and folder.is_file()):
        return _local(name, "folder", folder, local)
    packaged = _package_folder(name)
    if packaged is not None:
        return _local(name, "package", packaged, local)
    tried = [f"the folder {folder.absolute()}", f"the installed package {name}"]
    if _HUB_ID.fullmatch(name) and not name.startswith("."):
        options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
        if spec.revision is not None:
            options["revision"] = spec.revision
        problem = _hub_problem(name, spec.revision)
        if problem is None:
            return ModelSource(name, "hub", name, options)
        tried.append(f"the Hugging Face hub ({problem})")
    raise MeloraError(
        f"model.name_or_path: no model {name!r} found; tried {', '.join(tried)}; give a folder with a config.json or a "
        ".gguf file, an installed package that carries a model, or a hub id"
    )


def _local(name: str, kind: Literal["folder", "package"], place: Path, options: dict[str, Any]) -> ModelSource:
    """A model in a folder: with a config.json, or as one .gguf file, which `place` may also name itself."""
    if (place / "config.json").is_file():
        return ModelSource(name, kind, str(place), options)
    files = [place] if place.is_file() else sorted(place.glob("*.gguf"))
    if not files:
        raise MeloraError(
            f"model.name_or_path {name}: no config.json in {place}, nor a .gguf file; give a folder with a model in it"
        )
    if len(files) > 1:
        raise MeloraError(
            f"model.name_or_path {name}: {len(files)} .gguf files in {place}; give the path of one of them: "
            f"{', '.join(file.name for file in files)}"
        )
    if importlib.util.find_spec("gguf") is None:
        raise MeloraError(
            f"model.name_or_path {name}: {files[0].name} needs the package gguf; run `pip install 'melora[train]'`"
        )
    return ModelSource(name, kind, str(files[0].parent), {**options, "gguf_file": files[0].name})


def _package_folder(name: str) -> Path | None:
    """The model's folder in the installed package `name`: itself, its folder `model`, or what get_model_path() says."""
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    here = Path(spec.submodule_search_locations[0])
    for folder in (here / "model", here):
        # Found without an import: a package that carries a model may import a whole other stack to run it.
        if (folder / "config.json").is_file() or any(folder.glob("*.gguf")):
            return folder
    get_path = getattr(importlib.import_module(name), "get_model_path", None)
    return Path(get_path()) if callable(get_path) else None


def _has_path_function(name: str) -> bool:
    try:
        return callable(getattr(importlib.import_module(name), "get_model_path", None))
    except ImportError:
        return False


def _hub_problem(name: str, revision: str | None) -> str | None:
    """Why the hub has no such model for us, or None if it has; one quick request, none if the cache holds it."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    cached = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str):
        return None
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "not in its cache, and HF_HUB_OFFLINE is set"
    try:
        url = huggingface_hub.hf_hub_url(name, "config.json", revision=revision)
        huggingface_hub.get_hf_file_metadata(url, timeout=10)
    except HFValidationError as error:
        return one_line(error)
    except HfHubHTTPError as error:
        return one_line(error).split(".")[0]
    except Exception as error:  # whatever the HTTP client in use raises when there is no network
        return f"not in its cache, and the hub can't be reached: {one_line(error)[:80]}"
    return None
