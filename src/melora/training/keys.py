"""The list of a recipe's keys, made from the dataclasses themselves."""

import dataclasses
from typing import Any

import docstring_parser

from .recipe import AdapterSearch, DataSpec, ModelSpec, Recipe
from .tasks import TASKS

_OPEN = {
    "adapter": "  method (melora) and its config's fields: r, n, lora_alpha, lora_dropout, target_modules, ...",
    "training": "  learning_rate, num_train_epochs, per_device_train_batch_size, warmup_steps (below 1: a share), ...",
}


def recipe_keys() -> str:
    """Every key of a recipe with its type's default and meaning, as indented lines."""
    lines = []
    sections: dict[str, type[Any]] = {"model": ModelSpec, "data": DataSpec, "adapter_search": AdapterSearch}
    special = {name: task.data_section() for name, task in TASKS.items() if task.data_section() is not DataSpec}
    for name, help_text, default in _fields(Recipe):
        if name in sections:
            lines.append(f"{name}:  {help_text}")
            lines += _lines(_fields(sections[name]))
        else:
            lines.append(f"{name}: {default}  {help_text}")
            lines += [_OPEN[name]] if name in _OPEN else []
        if name == "data":
            for task, cls in special.items():
                lines.append(f"data, with task {task}:  in place of text and label")
                lines += _lines([field for field in _fields(cls) if field not in _fields(DataSpec)])
    return "\n".join(lines)


def _lines(fields: list[tuple[str, str, str]]) -> list[str]:
    return [f"  {key}: {value}  {text}" for key, text, value in fields]


def _fields(cls: type[Any]) -> list[tuple[str, str, str]]:
    """(name, meaning, default) of every field."""
    described = {
        entry.arg_name: entry.description or ""
        for base in reversed(cls.__mro__)
        for entry in docstring_parser.parse(base.__doc__ or "").params
    }
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
