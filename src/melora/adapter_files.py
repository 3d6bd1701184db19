"""An adapter folder on disk, read and checked without a model and without loading a tensor."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from safetensors import SafetensorError, safe_open

from .config import MeloraConfig
from .errors import MeloraError
from .factors import wide
from .file_modules import PREFIX, ModuleFactors, read_modules, start_key
from .initial import joined
from .permutation import check_orders
from .untrusted import own_file, read_header, read_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

__all__ = ["CONFIG_FILE", "PREFIX", "WEIGHTS_FILE", "AdapterFiles", "ModuleFactors", "read_adapter"]


@dataclass(frozen=True)
class AdapterFiles:
    """A checked adapter folder.

    Attributes:
        path: the folder.
        config: its MeloraConfig or LoraConfig.
        shapes: tensor name -> shape, every tensor of the file.
        modules: the adapted modules, in the file's order.
    """

    path: Path
    config: Any
    shapes: dict[str, tuple[int, ...]]
    modules: list[ModuleFactors]

    def load(self) -> dict[str, torch.Tensor]:
        """All tensors, on the CPU."""
        with safe_open(self.path / WEIGHTS_FILE, framework="pt") as file:
            return {name: file.get_tensor(name) for name in self.shapes}

    def factors(self, tensors: dict[str, torch.Tensor], module: ModuleFactors) -> tuple[torch.Tensor, torch.Tensor]:
        """(A, B) of a module, as file_modules.py lists them; a LoRA's as those of one mini.

        Where they are measured from a start (initial.py), those of rank 2r, in at least fp32, whose product is the
        update.
        """
        A, B = tensors[module.A_key], tensors[module.B_key]
        if module.has_start:
            found = A, B, tensors[start_key(module.A_key)], tensors[start_key(module.B_key)]
            return joined(*map(wide, found))
        return (A, B) if A.dim() > 2 else (A[None], B[None])

    def core(self, tensors: dict[str, torch.Tensor], module: ModuleFactors) -> torch.Tensor | None:
        """C of a module whose ranks a learned core mixes, (r, n, n)."""
        return None if module.C_key is None else tensors[module.C_key]

    def order(self, tensors: dict[str, torch.Tensor], module: ModuleFactors) -> torch.Tensor | None:
        """The order of a module's channels that a calibration found, (d_in + d_out,).

        Raises:
            MeloraError: it is none.
        """
        if module.P_key is None:
            return None
        order = tensors[module.P_key]
        check_orders(f"{self.path / WEIGHTS_FILE}: {module.name}", order, module.d_in, module.d_out)
        return order

    def other_keys(self) -> list[str]:
        """Names of the tensors that are no factors: trained heads and biases."""
        factors = {key for module in self.modules for key in module.keys}
        return [key for key in self.shapes if key not in factors]


def read_adapter(path: str | Path) -> AdapterFiles:
    """Read and check an adapter folder (MELORA, or LORA without variants), as PEFT's save_pretrained writes it.

    Raises:
        MeloraError: a file is missing, truncated, of an unknown kind, out of bounds (untrusted.py) or a link that
            leaves the folder; a tensor is missing, empty, left over, or does not have the shape that the config gives
            it. The message names the file, the tensor and the way out.
    """
    folder = Path(path)
    config = _read_config(folder)
    shapes = _read_shapes(folder)
    modules = read_modules(folder / WEIGHTS_FILE, config, shapes)
    if not modules:
        raise MeloraError(f"{folder / WEIGHTS_FILE}: holds no adapter weights; was it saved from an adapted model?")
    files = AdapterFiles(folder, config, shapes, modules)
    for key in files.other_keys():
        if any(part in key for part in ("melora_", "lora_")):
            raise MeloraError(f"{folder / WEIGHTS_FILE}: unexpected tensor {key}; save or download the adapter again")
    return files


def _read_config(folder: Path) -> Any:
    file = own_file(folder, CONFIG_FILE)
    if file is None:
        raise MeloraError(f"{folder}: no {CONFIG_FILE} in it; give the folder that save_pretrained wrote (RUN/adapter)")
    values = read_json(file)
    kind = values.get("peft_type") if isinstance(values, dict) else None
    config_cls: type[PeftConfig] | None = {"MELORA": MeloraConfig, "LORA": LoraConfig}.get(str(kind))
    if config_cls is None:
        raise MeloraError(f"{file}: peft_type is {kind!r}; melora reads MELORA and LORA adapters")
    known = {field.name for field in fields(config_cls)}
    unknown = sorted(set(values) - known)
    if unknown and config_cls is MeloraConfig and not isinstance(values.get("r"), list):
        raise MeloraError(f"{file}: unknown fields {', '.join(unknown)}; it may come from a newer melora: upgrade")
    try:
        # auto_mapping is for loading a base model, which load_adapter checks; reading an adapter needs no base.
        config = config_cls(**{key: value for key, value in values.items() if key in known - {"auto_mapping"}})
        if isinstance(config, MeloraConfig):
            config.check_n_is_chosen()
    except (TypeError, ValueError, AttributeError) as error:
        raise MeloraError(f"{file}: {' '.join(str(error).split())}") from None
    config.auto_mapping = values.get("auto_mapping")
    return config


def _read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    file = own_file(folder, WEIGHTS_FILE)
    if file is None:
        hint = " (adapter_model.bin is a pickle, which can run code: not read)" if any(folder.glob("*.bin")) else ""
        raise MeloraError(f"{folder}: no {WEIGHTS_FILE} in it{hint}; save the adapter with save_pretrained")
    shapes = read_header(file)
    try:
        with safe_open(file, framework="pt"):
            pass  # checks dtypes and offsets: the tensors must fill the file without gap or overlap
    except (SafetensorError, OSError) as error:
        raise MeloraError(f"{file}: truncated or damaged ({error}); copy or download it again") from None
    for name, shape in shapes.items():
        if 0 in shape:
            raise MeloraError(
                f"{file}: tensor {name} is empty (shape {list(shape)}): a sharded model (ZeRO-3, FSDP) was saved "
                "without gathering; gather the shards and save again"
            )
    return shapes
