import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from melora import MeloraError
from melora.training.schema import apply_overrides, convert, nearest, parse_yaml, positive, read_yaml


@dataclass
class Section:
    size: int = 1
    rate: float = 0.1
    names: list[str] | None = None


def test_numbers_with_an_exponent_are_numbers() -> None:
    assert parse_yaml("{a: 5e-3, b: 1e5}") == {"a": 0.005, "b": 100000.0}


def test_overrides_set_nested_keys_and_leave_the_original_alone() -> None:
    values = {"training": {"seed": 1}, "output": "a"}
    changed = apply_overrides(values, ["training.learning_rate=1e-3", "output=b", "adapter.target_modules=[q, v]"])
    assert changed == {
        "training": {"seed": 1, "learning_rate": 0.001},
        "output": "b",
        "adapter": {"target_modules": ["q", "v"]},
    }
    assert values == {"training": {"seed": 1}, "output": "a"}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("learning_rate", "must read key=value"),
        ("=3", "must read key=value"),
        ("training..x=3", "must read key=value"),
        ("output.name=3", "output holds 'a', not keys"),
        ("seed=[1", "not valid YAML"),
    ],
)
def test_bad_overrides_are_named(override: str, told: str) -> None:
    with pytest.raises(MeloraError, match=told.replace("[", r"\[")) as caught:
        apply_overrides({"output": "a"}, [override])
    assert override in str(caught.value)


def test_convert_gives_typed_values() -> None:
    assert convert(Section, {"size": 3, "rate": 2}, "s") == {"size": 3, "rate": 2.0}
    assert isinstance(convert(Section, {"rate": 2}, "s")["rate"], float)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"sise": 3}, "s: unknown key 'sise'; did you mean size?"),
        ({"qqq": 3}, "s: unknown key 'qqq'; there is names, rate, size"),
        ({"size": "x"}, "s.size: must be of type int, got 'x'"),
        ({"size": "8"}, "s.size: must be of type int, got '8'"),
        ({"size": True}, "s.size: must be of type int, got True"),
        ({"size": 1.5}, "s.size: must be of type int, got 1.5"),
        ({"size": None}, "s.size: must be of type int, got None"),
        ({"names": 3}, "s.names: must be of type list[str] | None, got 3"),
        ([1], "s: must hold keys (a mapping), got [1]"),
        ({3: 4}, "s: unknown key 3; there is names, rate, size"),
    ],
)
def test_convert_names_key_place_and_way_out(values: Any, told: str) -> None:
    with pytest.raises(MeloraError) as caught:
        convert(Section, values, "s")
    assert str(caught.value) == told


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, -math.inf, 11])
def test_positive_refuses_what_no_size_is(value: float) -> None:
    with pytest.raises(MeloraError, match="x: must be a finite number above 0 and at most 10"):
        positive("x", value, 10)


def test_nearest_lists_at_most_twenty() -> None:
    assert nearest("zzz", [f"k{i:02}" for i in range(25)]).endswith("k19 and 5 more")


@pytest.mark.parametrize(
    ("text", "told"), [("a: [1", "not valid YAML"), ("- 1", "holds no keys"), ("", "holds no keys")]
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(MeloraError, match=told) as caught:
        read_yaml(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_recipe(tmp_path: Path) -> None:
    with pytest.raises(MeloraError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
