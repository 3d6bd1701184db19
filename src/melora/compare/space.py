"""How a method's learning rate, and what else is to be chosen for it, is looked for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import MeloraError

RATE = "training.learning_rate"
# The part of the recipe that a search may vary: the model and the data are what is compared on.
_OPEN = ("adapter.", "training.", "loraplus_lr_ratio", "head_learning_rate_ratio")


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; `log` spreads them evenly over orders of magnitude."""

    low: float
    high: float
    log: bool
    whole: bool


@dataclass
class Search:
    """How settings are chosen for each method and task, by the score on the held-out rows.

    Args:
        sampler: grid tries every learning rate of the study; tpe lets Optuna's TPE sampler look for them.
        trials: tpe: how many settings to try for each method on each task.
        space: tpe: dotted key of the recipe -> {low, high} with log: true where it fits, or a list of choices. By
            default training.learning_rate, from the lowest to the highest of learning_rates.
        storage: tpe: any storage URL of Optuna, so that several machines share a search; by default an SQLite file in
            the study's output.
        seed: tpe: of the sampler, together with the number of trials that a storage holds already, and on a database of
            several machines with the process: none draws again what another has drawn.
        extend: grid: by how many rates at most the grid grows for a method and task whose best rate is its lowest or
            highest; 0 keeps it as it is.
    """

    sampler: Literal["grid", "tpe"] = "grid"
    trials: int = 10
    space: dict[str, Any] = field(default_factory=dict)
    storage: str | None = None
    seed: int = 0
    extend: int = 2

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise MeloraError(f"search.trials: must be 1 or more, got {self.trials}")
        if self.extend < 0:
            raise MeloraError(f"search.extend: must be 0 or more, got {self.extend}")
        if self.sampler == "grid":
            for key in ("space", "storage"):
                if getattr(self, key):
                    raise MeloraError(f"search.{key}: is for search.sampler: tpe; set that or remove {key}")
        for key, values in self.space.items():
            dimension(key, values)


def dimension(key: str, values: Any) -> Range | list[Any]:
    """One entry of search.space, checked.

    Raises:
        MeloraError: a key that may not be searched, or neither a range nor a list of choices.
    """
    where = f"search.space.{key}"
    if not key.startswith(_OPEN) or key == "adapter.method":
        ratios = "loraplus_lr_ratio and head_learning_rate_ratio"
        raise MeloraError(f"{where}: only keys of adapter (but method) and training, {ratios}")
    if isinstance(values, list):
        if len(values) < 2 or any(not isinstance(value, bool | int | float | str) for value in values):
            raise MeloraError(f"{where}: must be two choices or more, each a plain value, got {values!r}")
        return values
    if not isinstance(values, Mapping) or not {"low", "high"} <= set(values) <= {"low", "high", "log"}:
        raise MeloraError(f"{where}: must be {{low: ..., high: ..., log: true}} or a list of choices, got {values!r}")
    low, high, log = values["low"], values["high"], values.get("log", False)
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in (low, high))
    if not numbers or not isinstance(log, bool) or not low < high or (log and low <= 0):
        raise MeloraError(f"{where}: low must be below high, and above 0 with log: true, got {dict(values)}")
    return Range(low, high, log, isinstance(low, int) and isinstance(high, int))


def spaces(search: Search, rates: tuple[float, ...]) -> dict[str, Range | list[Any]]:
    """What TPE looks through for a method with these learning rates.

    Raises:
        MeloraError: no learning rates to span, and no range of them in search.space.
    """
    found = {key: dimension(key, values) for key, values in search.space.items()}
    if RATE not in found:
        if len(rates) < 2:
            raise MeloraError(
                f"search.space: has no {RATE}, and learning_rates has not two values to look between; give either"
            )
        found[RATE] = Range(rates[0], rates[-1], log=True, whole=False)
    return found
