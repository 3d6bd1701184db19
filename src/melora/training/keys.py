"""The list of a recipe's keys, made from the dataclasses themselves."""

import dataclasses
from typing import Any

import docstring_parser

from .recipe import DataSpec, ModelSpec, Recipe

_OPEN = {
    "adapter": "  method (melora) and its config's fields: r, n, lora_alpha, lora_dropout, target_modules, ...",
    "training": "  learning_rate, num_train_epochs, per_device_train_batch_size, warmup_steps (below 1: a share), ...",
}


def recipe_keys() -> str:
    """Every key of a recipe with its type's default and meaning, as indented lines."""
    lines = []
    sections: dict[str, type[Any]] = {"model": ModelSpec, "data": DataSpec}
    for name, help_text, default in _fields(Recipe):
        if name in sections:
            lines.append(f"{name}:  {help_text}")
            lines += [f"  {key}: {value}  {text}" for key, text, value in _fields(sections[name])]
        else:
            lines.append(f"{name}: {default}  {help_text}")
            lines += [_OPEN[name]] if name in _OPEN else []
    return "\n".join(lines)


def _fields(cls: type[Any]) -> list[tuple[str, str, str]]:
    """(name, meaning, default) of every field."""
    described = {entry.arg_name: entry.description or "" for entry in docstring_parser.parse(cls.__doc__ or "").params}
    found = []
    for item in dataclasses.fields(cls):
        if item.default is not dataclasses.MISSING:
            default = str(item.default)
        elif item.default_factory is not dataclasses.MISSING:
            default = str(item.default_factory())
        else:
            default = "(required)"
        found.append((item.name, " ".join(described[item.name].split()), default))
    return found
