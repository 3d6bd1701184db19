"""What takes LoRA's place in PEFT's tests: a config with LoRA's defaults, and a tuner that makes n fit."""

import functools
import re
from collections.abc import Iterator
from dataclasses import MISSING, InitVar, dataclass, fields
from typing import Any

import pytest
from peft import LoraConfig

from melora import MeloraConfig, MeloraError, MeloraModel

# What LoraConfig has and MELoRA does not: LoRA's variants (DoRA, aLoRA, ...) and its special initialisations.
LORA_ONLY = {f.name for f in fields(LoraConfig)} - {f.name for f in fields(MeloraConfig)} - {"init_lora_weights"}


def lora_only(values: dict[str, Any]) -> list[str]:
    """The arguments among `values` that ask for something that only LoRA has, e.g. ["use_dora"]."""
    asked = [name for name in LORA_ONLY if values.get(name)]
    if isinstance(values.get("init_lora_weights"), str) and values["init_lora_weights"] != "gaussian":
        asked.append("init_lora_weights=" + values["init_lora_weights"])
    return sorted(asked)


@dataclass
class StandIn(MeloraConfig):
    """MeloraConfig with LoRA's defaults, and an n that divides most layers of PEFT's tests (10 x 20, 20 x 2).

    Takes every argument of LoraConfig. One that only LoRA has skips the running test; outside a test (the decorators of
    PEFT's tests make configs too) it is noted in `asked_for_lora`, and the plugin leaves the case out.
    """

    r: int = 8
    n: int = 2
    lora_alpha: int | float = 8
    init_lora_weights: InitVar[bool | str | None] = None

    def __post_init__(self, init_lora_weights: bool | str | None) -> None:
        if init_lora_weights is not None:
            self.init_weights = "gaussian" if init_lora_weights == "gaussian" else bool(init_lora_weights)
        super().__post_init__()


# Whether a test runs right now; the plugin sets it.
running_test = False
_dataclass_init = StandIn.__init__


@functools.wraps(_dataclass_init)
def _init(self: StandIn, *args: Any, **kwargs: Any) -> None:
    asked = lora_only(kwargs)
    if asked and running_test:
        pytest.skip(f"asks for what only LoRA has: {', '.join(asked)}")
    known = {name: value for name, value in kwargs.items() if name not in LORA_ONLY}
    if any(entry.startswith("init_lora_weights=") for entry in asked):
        del known["init_lora_weights"]
    _dataclass_init(self, *args, **known)
    self.__dict__["asked_for_lora"] = asked


StandIn.__init__ = _init  # type: ignore[method-assign]  # a dataclass makes its own __init__
for _field in fields(LoraConfig):
    if _field.name in LORA_ONLY and _field.default is not MISSING:  # read by tests that only ask whether it is set
        setattr(StandIn, _field.name, _field.default)


class FittingModel(MeloraModel):
    """MeloraModel that gives a layer which the config's n or r does not fit others that do, in the config's patterns.

    The tests have layers of 5 x 1 and of 1 channel, and know nothing of n. MeloraModel refuses before it touches the
    model, and names the module: what it refuses is tried again with the next choice for that module.
    """

    def inject_adapter(self, model: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        config = self.peft_config[adapter_name]
        choices: dict[str, Iterator[tuple[int, int]]] = {}
        while True:
            try:
                super().inject_adapter(model, adapter_name, *args, **kwargs)
                return
            except MeloraError as error:
                found = re.match(r"([\w.]+): (?=n=|r=|with groups=)", str(error))
                choice = found and next(choices.setdefault(found[1], _choices()), None)
                if not found or not choice:
                    raise
                name, (n, r) = f"^{found[1]}", choice
                config.n_pattern, config.rank_pattern = config.n_pattern | {name: n}, config.rank_pattern | {name: r}


def _choices() -> Iterator[tuple[int, int]]:
    return ((n, r) for r in (4, 1) for n in (5, 2, 3, 1))
