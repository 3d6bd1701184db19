"""Strict loading: an adapter file fits the model exactly, or nothing is loaded and one line says what is wrong."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import (
    _filter_state_dict_by_key_prefixes,
    _get_in_out_features,
    _get_tuner_state_dict_key_prefixes,
)
from torch import nn

from .adapter_files import PREFIX, AdapterFiles, read_adapter
from .errors import MeloraError
from .untrusted import check_auto_mapping

__all__ = ["AdapterFiles", "check_state_dict", "load_adapter", "read_adapter"]


def load_adapter(base_model: nn.Module, path: str | Path, **kwargs: Any) -> PeftModel:
    """PeftModel.from_pretrained, with every check made before the model is touched.

    Args:
        base_model: the model that the adapter was trained on.
        path: the adapter's folder.
        kwargs: passed on to PeftModel.from_pretrained.

    Raises:
        MeloraError: a damaged or hostile folder (see read_adapter), or an adapter for another base model.
    """
    files = read_adapter(path)
    check_auto_mapping(files.config.auto_mapping, f"{path}: ")
    modules = dict(base_model.named_modules())
    made_for = files.config.base_model_name_or_path or "a base model that it does not name"
    for module in files.modules:
        base = modules.get(module.base_name)
        if base is None:
            raise MeloraError(
                f"{path}: adapts {module.base_name}, which {type(base_model).__name__} does not have; the adapter was "
                f"made for {made_for}: load that model"
            )
        if module.kind == "parameter":
            continue  # sizes are the parameter's, and checked with the tensors' shapes
        d_in, d_out = _get_in_out_features(base)
        if (d_in, d_out) != (module.d_in, module.d_out):
            raise MeloraError(
                f"{path}: {module.base_name} is {module.d_out} x {module.d_in} in the adapter and {d_out} x {d_in} in "
                f"{type(base_model).__name__}; the adapter was made for {made_for}: load that model"
            )
    own = {PREFIX + name for name in base_model.state_dict()}
    for key in files.other_keys():
        if key.replace(".base_layer.", ".") not in own:  # a trained bias bears the adapted layer's path
            raise MeloraError(f"{path}: tensor {key} has no place in {type(base_model).__name__}; load {made_for}")
    for name in files.config.modules_to_save or []:
        there = any(module == name or module.endswith(f".{name}") for module in modules)
        # PEFT lists the usual names of heads ("classifier", "score"), of which a model has one.
        if there and not any(f".{name}." in key for key in files.other_keys()):
            raise MeloraError(f"{path}: modules_to_save names {name}, but the file has no tensor of it; save it again")
    return PeftModel.from_pretrained(base_model, str(path), **kwargs)


def check_state_dict(
    model: nn.Module, biases: dict[str, torch.Tensor], adapter_name: str, state_dict: dict[str, torch.Tensor]
) -> None:
    """Check that a file's tensors, under the model's names, are exactly this adapter's.

    Args:
        model: the model with the adapter in place (a PeftModel, or a model with injected layers).
        biases: the model's biases that the adapter trains, by name.
        adapter_name: its name in the model.
        state_dict: what is about to be loaded.

    Raises:
        MeloraError: missing, extra, empty or mis-shaped tensors; the first few are named.
    """
    own = model.state_dict()
    prefixes = _get_tuner_state_dict_key_prefixes(model, adapter_name=adapter_name)
    wanted = {**_filter_state_dict_by_key_prefixes(own, prefixes)}
    wanted.update(biases)

    given = {key if key in own else key.removeprefix(PREFIX): value for key, value in state_dict.items()}
    _raise_if("missing", sorted(wanted.keys() - given.keys()), adapter_name)
    _raise_if("unexpected", sorted(given.keys() - own.keys()), adapter_name)
    _raise_if("empty", [key for key, value in given.items() if value.numel() == 0], adapter_name)
    mis_shaped = [
        f"{key} {list(value.shape)} instead of {list(own[key].shape)}"
        for key, value in given.items()
        if value.shape != own[key].shape
    ]
    _raise_if("mis-shaped", mis_shaped, adapter_name)


def _raise_if(problem: str, keys: list[str], adapter_name: str) -> None:
    if keys:
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise MeloraError(
            f"adapter {adapter_name!r}: {len(keys)} {problem} tensor(s) in its file: {', '.join(keys[:3])}{more}; "
            "the file is damaged or belongs to another base model or config: load the matching one"
        )
