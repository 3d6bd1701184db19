"""Adapters of the authors' reference code (ChasonShi/MELoRA), rewritten in melora's own format.

That code calls its method MELORA too, and its files differ: r and lora_alpha are lists, one value per mini; mini i's
factors are tensors of their own, MODULE.lora_A.{i}.weight (r_i, d_in / n) and MODULE.lora_B.{i}.weight
(d_out / n, r_i); a trained bias is MODULE.bias; and heads are stored twice, once as they were before training
(original_module). It is a copy of PEFT 0.5, which saves a pickle, adapter_model.bin, unless told otherwise.
"""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .adapter_files import CONFIG_FILE, WEIGHTS_FILE, read_adapter
from .config import MeloraConfig
from .conversion import new_folder
from .errors import MeloraError
from .untrusted import own_file, read_header, read_json

PICKLE_FILE = "adapter_model.bin"
_FACTOR = re.compile(r"(?P<stem>.+)\.lora_(?P<side>[AB])\.(?P<mini>\d{1,6})\.weight")
# The heads that PEFT trains by itself for a classifier, and does not list in a config of version 0.5.
_HEADS = ("classifier", "score")


def convert_reference(path: str | Path, output: str | Path, *, allow_pickle: bool = False) -> Path:
    """Write an adapter of the reference code as a MELoRA adapter that computes the same.

    Minis of different rank are padded with zeros to the largest (such rows and columns get no gradient, so they stay
    zero), and where their alpha / r differ, the difference goes into B.

    Args:
        path: the adapter's folder, as that code's save_pretrained wrote it.
        output: the folder to make; it must not exist.
        allow_pickle: read adapter_model.bin too, with torch.load(weights_only=True), which builds tensors only. The
            format can run code, and this mode has had holes: for files that you or people you trust made.

    Raises:
        MeloraError: no such adapter, damaged, a mini of rank 0 (that code drops its block, and then fails), a pickle
            without allow_pickle, or `output` exists. Nothing is written then.
    """
    folder = Path(path)
    values = _read_config(folder)
    ranks, alphas = values["r"], values["lora_alpha"]
    n, r = len(ranks), max(ranks)
    scalings = [alpha / rank for alpha, rank in zip(alphas, ranks, strict=True)]
    converted: dict[str, torch.Tensor] = {}
    minis: dict[str, dict[str, dict[int, torch.Tensor]]] = {}
    for key, tensor in _read_tensors(folder, allow_pickle).items():
        found = _FACTOR.fullmatch(key)
        if found:
            sides = minis.setdefault(found["stem"], {"A": {}, "B": {}})
            sides[found["side"]][int(found["mini"])] = tensor
        elif ".original_module." not in key:  # the head as it was before training
            converted[key] = tensor.contiguous()
    if not minis:
        raise MeloraError(f"{folder}: holds no factors of the reference code (MODULE.lora_A.0.weight); was it saved?")
    for stem, sides in minis.items():
        for side, end in (("A", "melora_A"), ("B", "melora_B")):
            shares = [scaling / scalings[0] for scaling in scalings] if side == "B" else [1.0] * n
            converted[f"{stem}.{end}.weight"] = _stack(folder, stem, side, sides[side], ranks, shares)
        if f"{stem}.bias" in converted:
            converted[f"{stem}.base_layer.bias"] = converted.pop(f"{stem}.bias")
    config = _config(folder, values, n, r, scalings[0] * r, converted)
    with new_folder(output) as new:
        save_file(converted, new / WEIGHTS_FILE, metadata={"format": "pt"})
        config.save_pretrained(str(new))
        read_adapter(new)  # what is written must load
    return Path(output)


def _read_config(folder: Path) -> dict[str, Any]:
    file = own_file(folder, CONFIG_FILE)
    if file is None:
        raise MeloraError(f"{folder}: no {CONFIG_FILE} in it; give the folder that the reference code's run wrote")
    values = read_json(file)
    if not isinstance(values, dict) or values.get("peft_type") != "MELORA" or not isinstance(values.get("r"), list):
        raise MeloraError(
            f"{file}: is no config of the reference code (peft_type MELORA and a list as r); load it as is"
        )
    ranks, alphas = values["r"], values.get("lora_alpha")
    alphas = alphas[: len(ranks)] if isinstance(alphas, list) else None  # that code reads no more of them
    if not ranks or not alphas or len(alphas) < len(ranks) or not all(type(v) is int and v > 0 for v in ranks + alphas):
        raise MeloraError(
            f"{file}: r={ranks!r}, lora_alpha={values.get('lora_alpha')!r}: one whole number above 0 is needed for "
            "each mini; a mini of rank 0 can't be loaded by the reference code either: train again"
        )
    return {**values, "lora_alpha": alphas}


def _read_tensors(folder: Path, allow_pickle: bool) -> dict[str, torch.Tensor]:
    file = own_file(folder, WEIGHTS_FILE)
    if file is not None:
        read_header(file)
        return load_file(file)
    file = own_file(folder, PICKLE_FILE)
    if file is None:
        raise MeloraError(f"{folder}: neither {WEIGHTS_FILE} nor {PICKLE_FILE} in it; give the adapter's own folder")
    if not allow_pickle:
        raise MeloraError(
            f"{file}: is a pickle, which can run code when it is read; if you trust its source, "
            "convert_reference(..., allow_pickle=True) reads it"
        )
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise MeloraError(f"{file}: does not hold a dict of tensors; save the adapter again")
    return tensors


def _stack(
    folder: Path, stem: str, side: str, minis: dict[int, torch.Tensor], ranks: list[int], shares: list[float]
) -> torch.Tensor:
    """All minis' A as (n, r, d_in / n), or B as (n, d_out / n, r), r the largest rank, each times its share."""
    if sorted(minis) != list(range(len(ranks))):
        raise MeloraError(
            f"{folder}: {stem} has lora_{side} of minis {sorted(minis)[:8]}, and r lists {len(ranks)} minis"
        )
    r, rows = max(ranks), []
    for i, rank in enumerate(ranks):
        M = minis[i]
        if M.dim() != 2 or M.shape[0 if side == "A" else 1] != rank or M.numel() == 0:
            raise MeloraError(
                f"{folder}: {stem}.lora_{side}.{i}.weight has shape {list(M.shape)} at rank {rank}: damaged"
            )
        missing = (0, 0, 0, r - rank) if side == "A" else (0, r - rank)
        rows.append(torch.nn.functional.pad(M if shares[i] == 1.0 else M * shares[i], missing))
    if len({row.shape for row in rows}) > 1:
        raise MeloraError(f"{folder}: {stem}: the minis' lora_{side} have different sizes: damaged; save it again")
    return torch.stack(rows)


def _config(
    folder: Path, values: dict[str, Any], n: int, r: int, lora_alpha: float, tensors: dict[str, torch.Tensor]
) -> MeloraConfig:
    known = {field.name for field in fields(MeloraConfig)} - {"auto_mapping", "peft_type"}
    kept = {key: value for key, value in values.items() if key in known}
    if values.get("task_type") in ("SEQ_CLS", "TOKEN_CLS") and not kept.get("modules_to_save"):
        heads = [name for name in _HEADS if any(f".{name}." in key for key in tensors)]
        kept["modules_to_save"] = heads or None
    alpha = int(lora_alpha) if float(lora_alpha).is_integer() else lora_alpha
    try:
        return MeloraConfig(**{**kept, "n": n, "r": r, "lora_alpha": alpha, "inference_mode": True})
    except MeloraError as error:
        raise MeloraError(f"{folder / CONFIG_FILE}: {error}") from None
