"""The study file: what is compared on what, typed, with every default visible."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import MeloraError
from ..training.dataspec import LARGEST_SEED
from ..training.recipe import Recipe
from ..training.schema import apply_overrides, check_keys, convert, nearest, positive, read_yaml
from .space import Search

# What a part of the study may say of a recipe: the study itself sets the rest.
_SET_HERE = {"seed": "use the study's key seeds", "output": "use the study's key output"}
_RATIOS = ("loraplus_lr_ratio", "head_learning_rate_ratio")
_OF_METHODS = ("adapter", "adapter_search", "training", "model", *_RATIOS, "idle_modules", "learning_rates")


@dataclass
class Study:
    """A comparison of methods over tasks, seeds and learning rates.

    Args:
        output: the folder of its runs; each is a folder named by the hash of its resolved recipe.
        tasks: name -> keys of a recipe (task, data, training, ...) for this task. data.holdout must be set: it is what
            learning rates and epochs are chosen on. A task's own key `score` holds changes to its data section for the
            one scoring at the end (default: no holdout, so that the validation split is read).
        methods: name -> keys of a recipe for this method (adapter, adapter_search, training, model, loraplus_lr_ratio,
            head_learning_rate_ratio, idle_modules), and its own learning_rates.
        base: keys of a recipe that all runs share. Tasks' keys go before it, methods' before both; null takes a key
            out.
        learning_rates: tried for every method that has none of its own.
        seeds: of the scored runs; the first is the search's, and its run at the chosen rate is not made again.
        reference: the method to compare with.
        search: how the learning rate (and more) is looked for (see Search).
        report: the folder of the report (default: report in `output`).
        title: heads the report.
        description: what is asked, and what was made smaller and why; heads the report.
    """

    output: str
    tasks: dict[str, Any]
    methods: dict[str, Any]
    reference: str
    base: dict[str, Any] = field(default_factory=dict)
    learning_rates: list[float] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    search: Search = field(default_factory=Search)
    report: str | None = None
    title: str = "Comparison of adapter methods"
    description: str = ""

    def __post_init__(self) -> None:
        for name, values in (("tasks", self.tasks), ("methods", self.methods)):
            if not values:
                raise MeloraError(f"study: {name} is empty; name at least one, with the keys of a recipe")
            for key, part in values.items():
                _check_part(f"{name}.{key}", part)
        _check_part("base", self.base)
        for key, method in self.methods.items():
            check_keys(method, _OF_METHODS, f"methods.{key}")
        if self.reference not in self.methods:
            raise MeloraError(f"reference: no method {self.reference!r}; {nearest(self.reference, self.methods)}")
        self._check_seeds()
        for key in self.methods:
            self._check_rates(key)
        if not self.output.strip():
            raise MeloraError("output: is empty; name a folder for the runs, e.g. output: runs/study")

    @property
    def report_folder(self) -> Path:
        return Path(self.report).expanduser() if self.report else Path(self.output).expanduser() / "report"

    def rates(self, method: str) -> tuple[float, ...]:
        """The learning rates that a grid tries for a method, ascending."""
        return tuple(sorted(float(rate) for rate in self.methods[method].get("learning_rates", self.learning_rates)))

    def _check_seeds(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise MeloraError(f"seeds: must name one seed or more, each once, got {self.seeds}")
        for seed in self.seeds:
            if not 0 <= seed <= LARGEST_SEED:
                raise MeloraError(f"seeds: must be from 0 to {LARGEST_SEED}, got {seed}")

    def _check_rates(self, method: str) -> None:
        own = "learning_rates" in self.methods[method]
        where = f"methods.{method}.learning_rates" if own else "learning_rates"
        values = self.methods[method]["learning_rates"] if own else self.learning_rates
        if not isinstance(values, list) or any(isinstance(x, bool) or not isinstance(x, int | float) for x in values):
            raise MeloraError(f"{where}: must be a list of numbers, got {values!r}; e.g. [1e-3, 3e-3, 1e-2]")
        for rate in values:
            positive(where, rate, 1e6)
        if len(set(map(float, values))) != len(values):
            raise MeloraError(f"{where}: names a rate twice: {values}; its run would be repeated, so name it once")
        if not values and self.search.sampler == "grid":
            raise MeloraError(
                f"{where}: is empty, and method {method} has nothing to choose from; give at least one, e.g. "
                "[1e-3, 3e-3, 1e-2]"
            )


def load_study(path: str | Path, overrides: Iterable[str] = ()) -> Study:
    """Read a study file and apply `key.sub=value` overrides.

    Raises:
        MeloraError: no such file, no YAML, an unknown or missing key, a value of the wrong type or out of range.
    """
    return parse_study(apply_overrides(read_yaml(Path(path), "study"), overrides), f"study {path}")


def parse_study(values: Mapping[str, Any], where: str = "study") -> Study:
    """A Study from plain values; see load_study."""
    check_keys(values, [item.name for item in dataclasses.fields(Study)], where)
    for key in ("output", "tasks", "methods", "reference"):
        if values.get(key) is None:
            raise MeloraError(f"{where}: key {key!r} is missing; a study needs output, tasks, methods and reference")
    rest = {key: value for key, value in values.items() if key != "search"}
    search = Search(**convert(Search, values.get("search") or {}, "search"))
    return Study(**convert(Study, rest, ""), search=search)


def _check_part(where: str, part: Any) -> None:
    if not isinstance(part, dict):
        raise MeloraError(f"{where}: must hold keys of a recipe, got {part!r}")
    for key, hint in _SET_HERE.items():
        if key in part:
            raise MeloraError(f"{where}.{key}: {hint}; remove it here")
    known = [item.name for item in dataclasses.fields(Recipe)]
    if where.startswith("methods."):
        return  # its keys are fewer, and checked apart
    check_keys(part, [*known, *(["score"] if where.startswith("tasks.") else [])], where)
    if "learning_rate" in (part.get("training") or {}):
        raise MeloraError(f"{where}.training.learning_rate: every method has its own; use learning_rates")
