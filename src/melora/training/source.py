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

    def python(self) -> tuple[list[str], str]:
        """(import lines, an expression) that give the path in a Python example."""
        if self.kind == "package":
            return [f"import {self.name}"], f"{self.name}.get_model_path()"
        return [], repr(self.name)


def find_model(spec: ModelSpec) -> ModelSource:
    """Find a base model. A folder or a package never touches the network.

    Raises:
        MeloraError: not found; what was tried is listed.
    """
    name = spec.name_or_path
    folder = Path(name).expanduser()
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": spec.trust_remote_code}
    if folder.is_dir():
        return ModelSource(name, "folder", str(_checked(folder, name)), local)
    packaged = _package_folder(name)
    if packaged is not None:
        return ModelSource(name, "package", str(_checked(packaged, name)), local)
    tried = [f"the folder {folder.absolute()}", f"the installed package {name}"]
    if _HUB_ID.fullmatch(name) and not name.startswith("."):
        options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
        if spec.revision is not None:
            options["revision"] = spec.revision
        problem = _hub_problem(name, spec.revision)
        if problem is None:
            return ModelSource(name, "hub", name, options)
        tried.append(f"the Hugging Face hub ({problem})")
    raise MeloraError(f"model.name_or_path: no model {name!r} found; tried {', '.join(tried)}")


def _checked(folder: Path, name: str) -> Path:
    if not (folder / "config.json").is_file():
        raise MeloraError(f"model.name_or_path {name}: no config.json in {folder}; give a folder with a model in it")
    return folder


def _package_folder(name: str) -> Path | None:
    """The model's folder in the installed package `name`: its get_model_path(), or its folder `model`."""
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    inside = Path(spec.submodule_search_locations[0]) / "model"
    if (inside / "config.json").is_file():
        return inside
    get_path = getattr(importlib.import_module(name), "get_model_path", None)
    return Path(get_path()) if callable(get_path) else None


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
