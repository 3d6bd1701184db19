"""PEFT's test modules, re-pointed to MELoRA once they are imported: parametrisations, parameter names, layer class."""

import re
import types
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from peft import LoraConfig, PeftConfig
from peft.tuners import lora

from melora import MeloraLayer

from .stand_in import StandIn, lora_only

# Names of LoRA's factors, and the start of its layers' repr.
_LORA_NAME = re.compile(r"(?<![a-z])(lora_(?:embedding_)?[AB]\b|lora\.(?=[A-Z]))")

# What a model of the tests needs beside LoRA's own arguments.
_EXTRA: dict[str, dict[str, Any]] = {
    # 8 groups: with this n they stay apart, and the adapter can be merged.
    "Conv2dGroups": {"n_pattern": {"conv2d": 8}},
    # test_only_params_are_updated: at r=8 its three steps move B by 8e-5 (LoRA's by 1.3e-4), its tolerance is 1e-4.
    "EmbConv1D": {"n_pattern": {"emb": 5}, "rank_pattern": {"emb": 1}},
}

# Rows that MELoRA can't take because they ask for what only LoRA has, by reason.
lora_only_rows: dict[str, set[str]] = {}


class NotOursError(Exception):
    """A case that can't be MELoRA's; the message says why."""


def repoint_module(module: Any) -> None:
    """Re-point all tests of an imported test module. Doing it twice changes nothing."""
    if getattr(module, "LoraLayer", None) is lora.LoraLayer:
        module.LoraLayer = MeloraLayer
    if getattr(module, "lora", None) is lora:
        module.lora = types.SimpleNamespace(**vars(lora) | {"LoraLayer": MeloraLayer})
    for function in functions(module):
        repoint_marks(function)
        function.__code__ = repoint_code(function.__code__)


def functions(module: Any) -> Iterator[types.FunctionType]:
    """All functions that a module defines, methods of its classes included."""
    for value in list(vars(module).values()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        members = vars(value).values() if isinstance(value, type) else [value]
        yield from (member for member in members if isinstance(member, types.FunctionType))


def repoint_marks(function: Any) -> None:
    """Give a test `parametrize` marks that hold MELoRA's rows alone (see `repoint_row`)."""
    marks = getattr(function, "pytestmark", [])
    for i, mark in enumerate(marks):
        if mark.name == "parametrize" and len(mark.args) > 1:
            rows = [row for old in mark.args[1] for row in _ours(old)]
            marks[i] = pytest.mark.parametrize(mark.args[0], rows, *mark.args[2:], **mark.kwargs).mark


def _ours(row: Any) -> list[Any]:
    try:
        return [repoint_row(row)]
    except NotOursError as error:
        if not str(error).startswith("names another method"):
            lora_only_rows.setdefault(str(error), set()).add(repr(row))
        return []


def repoint_row(row: Any) -> Any:
    """A row of a parametrisation with MELoRA where it has LoRA; unchanged if it names no method.

    Raises:
        NotOursError: the row names another method, or asks for what only LoRA has.
    """
    if hasattr(row, "values") and hasattr(row, "marks"):  # pytest.param(...)
        return pytest.param(*repoint_row(tuple(row.values)), marks=row.marks, id=row.id)
    if not isinstance(row, tuple | list):
        return _repoint_value(row)
    if not any(_is_config(value) for value in row):
        return row
    values = [_repoint_value(value) for value in row]
    extra = next((_EXTRA[value] for value in row if isinstance(value, str) and value in _EXTRA), {})
    return tuple(value | extra if isinstance(value, dict) else value for value in values)


def _is_config(value: Any) -> bool:
    return isinstance(value, PeftConfig) or (isinstance(value, type) and issubclass(value, PeftConfig))


def _repoint_value(value: Any) -> Any:
    if value is LoraConfig or value is StandIn:
        return StandIn
    if type(value) is LoraConfig:
        defaults = LoraConfig()
        given = {f.name: getattr(value, f.name) for f in fields(LoraConfig) if f.init}
        return _checked(StandIn(**{key: v for key, v in given.items() if v != getattr(defaults, key)}))
    if type(value) is StandIn:
        return _checked(value)
    if _is_config(value):
        raise NotOursError(f"names another method: {getattr(value, '__name__', type(value).__name__)}")
    if isinstance(value, dict):
        if asked := lora_only(value):
            raise NotOursError(f"asks for what only LoRA has: {', '.join(asked)}")
        # StandIn takes init_lora_weights, but a test may add init_weights, the name that it expects of other methods.
        return {"init_weights" if key == "init_lora_weights" else key: v for key, v in value.items()}
    return value


def _checked(config: StandIn) -> StandIn:
    if config.asked_for_lora:
        raise NotOursError(f"asks for what only LoRA has: {', '.join(config.asked_for_lora)}")
    return config


def repoint_code(code: types.CodeType) -> types.CodeType:
    """The code with melora_A and melora_B where it names the attribute, or has in a string, lora_A and lora_B."""
    return code.replace(
        co_names=tuple(_LORA_NAME.sub(r"me\1", name) for name in code.co_names),
        co_consts=tuple(_repoint_constant(constant) for constant in code.co_consts),
    )


def _repoint_constant(constant: Any) -> Any:
    if isinstance(constant, types.CodeType):
        return repoint_code(constant)
    if isinstance(constant, str):
        return _LORA_NAME.sub(r"me\1", constant)
    if isinstance(constant, tuple):
        return tuple(_repoint_constant(item) for item in constant)
    return constant


def names(code: types.CodeType) -> set[str]:
    """All global and attribute names that a function's code uses, inner functions included."""
    inner = [names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*inner)
