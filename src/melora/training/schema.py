"""From YAML and `key.sub=value` to typed values: the one place that says what a key may be called and hold."""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import jsonargparse
import yaml

from ..errors import MeloraError

# What a file of each kind needs, and one to look at.
_NEEDS = {"recipe": "model, data and output", "study": "output, tasks, methods and reference"}
_EXAMPLES = {"recipe": "recipes/quickstart.yaml", "study": "studies/quick.yaml"}


def read_yaml(path: Path, kind: Literal["recipe", "study"] = "recipe") -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: the file.
        kind: what it holds, for messages.

    Raises:
        MeloraError: no such file, not YAML, or not a mapping.
    """
    if not path.is_file():
        raise MeloraError(f"{kind} {path}: no such file; give the path of a YAML {kind}, e.g. {_EXAMPLES[kind]}")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise MeloraError(f"{kind} {path}: not valid YAML: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise MeloraError(f"{kind} {path}: holds no keys; it needs at least {_NEEDS[kind]}")
    return values


def parse_yaml(text: str) -> Any:
    """Safe YAML in which 5e-3 is a number (to plain PyYAML it is a string)."""
    return jsonargparse.get_loader("yaml")(text)


def apply_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`values` with every `key.sub=value` set; the value is YAML, so 3 is a number and [a, b] a list.

    Raises:
        MeloraError: an override without "=", or one that reaches into a key that holds no keys.
    """
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for override in overrides:
        dotted, equals, text = override.partition("=")
        parts = dotted.split(".")
        if not equals or not all(parts):
            raise MeloraError(f"override {override!r}: must read key=value or key.sub=value, e.g. training.seed=1")
        try:
            value = parse_yaml(text)
        except yaml.YAMLError as error:
            raise MeloraError(f"override {override!r}: the value is not valid YAML: {one_line(error)}") from None
        place = result
        for part in parts[:-1]:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                raise MeloraError(f"override {override!r}: {part} holds {inner!r}, not keys; set {part}=... instead")
            place[part] = dict(inner)
            place = place[part]
        place[parts[-1]] = value
    return result


def convert(cls: type[Any], values: Any, where: str) -> dict[str, Any]:
    """Check a section of a recipe against a dataclass (ours, a PeftConfig or TrainingArguments) without building it.

    Args:
        cls: the dataclass.
        values: the section as YAML gave it.
        where: the section's name, for messages.

    Returns:
        The same keys with values of the fields' types (an int where a float is asked for becomes one).

    Raises:
        MeloraError: an unknown key, with the nearest known ones, or a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise MeloraError(f"{where}: must hold keys (a mapping), got {values!r}")
    fields = [field.name for field in dataclasses.fields(cls) if field.init]
    check_keys(values, fields, where)
    hints = get_type_hints(cls)
    return {key: _typed(hints[key], value, f"{where}.{key}" if where else key) for key, value in values.items()}


def _typed(hint: Any, value: Any, where: str) -> Any:
    if hint == dict[str, Any] and isinstance(value, dict):
        return value  # an open section; jsonargparse would read its strings as YAML once more
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        typed = parser.parse_object({"value": value}).value
        # jsonargparse takes null for any type, and a quoted number for a number.
        if value is None and hint is not Any and type(None) not in get_args(hint):
            raise TypeError("null is no value of this type")
        if isinstance(value, str) and isinstance(typed, int | float):
            raise TypeError("a quoted number is a string")
    except (jsonargparse.ArgumentError, TypeError, ValueError):
        raise MeloraError(f"{where}: must be of type {_type_name(hint)}, got {value!r}") from None
    # Of keys within keys, such as PEFT's use_bdlora, it makes an object of its own; PEFT builds its config from a dict.
    return value if isinstance(typed, jsonargparse.Namespace) else typed


def _type_name(hint: Any) -> str:
    """A type as a message names it: int, dict[str, int], int or 'auto'."""
    if get_origin(hint) is Union and any(get_origin(part) is Literal for part in get_args(hint)):
        return " or ".join(map(_type_name, get_args(hint)))
    if get_origin(hint) is Literal and len(get_args(hint)) == 1:
        return repr(get_args(hint)[0])
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def check_keys(values: Mapping[Any, Any], known: Iterable[str], where: str) -> None:
    """Raise a MeloraError that names the first unknown key and offers the nearest known ones."""
    known = list(known)
    for key in values:
        if key not in known:
            raise MeloraError(f"{where}: unknown key {key!r}; {nearest(str(key), known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for messages: "did you mean ...?" if something is close, else all that there is (at most 20)."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    listed = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    return f"there is {listed or 'none'}"


def positive(where: str, value: float, most: float = math.inf) -> None:
    """Raise a MeloraError unless value is finite, above 0 and at most `most`."""
    if not (math.isfinite(value) and 0 < value <= most):
        limit = f" and at most {most:g}" if math.isfinite(most) else ""
        raise MeloraError(f"{where}: must be a finite number above 0{limit}, got {value!r}")


def one_line(error: BaseException | str) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split())
