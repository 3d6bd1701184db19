"""The runs of a study: each a resolved recipe, and named by its hash."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import MeloraError
from ..training.recipe import Recipe, parse_recipe
from ..training.schema import apply_overrides
from .space import RATE
from .study import Study

Setting = dict[str, float | int | str | bool]


@dataclass(frozen=True)
class Job:
    """One run that a study wants.

    Attributes:
        task, method: the study's names.
        setting: what the search chose for it, by dotted key; the learning rate is in it.
        seed: the run's.
        recipe: resolved; its output is the run's folder.
        run: the recipe's hash.
        score: changes to the recipe's data section for the scoring at the end.
    """

    task: str
    method: str
    setting: Setting
    seed: int
    recipe: Recipe
    run: str
    score: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.recipe.output)

    @property
    def rate(self) -> float:
        return float(self.setting[RATE])

    @property
    def text(self) -> str:
        """For a person: task, method, setting, seed."""
        values = (
            f"{key.rsplit('.', 1)[-1]} {value:g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in self.setting.items()
        )
        return f"{self.task}, {self.method}, {', '.join(values)}, seed {self.seed}"


@dataclass(frozen=True)
class Cell:
    """One method on one task."""

    study: Study
    task: str
    method: str

    def job(self, setting: Mapping[str, Any], seed: int) -> Job:
        """The run of this method on this task at a setting.

        Raises:
            MeloraError: the recipe that the study's parts add up to is no recipe; the message names task and method.
        """
        task, method = dict(self.study.tasks[self.task]), dict(self.study.methods[self.method])
        score = task.pop("score", {"holdout": None})
        method.pop("learning_rates", None)
        values = merged(merged(self.study.base, task), method)
        where = f"task {self.task}, method {self.method}"
        try:
            values = apply_overrides(values, (f"{key}={json.dumps(value)}" for key, value in setting.items()))
            recipe = parse_recipe({**values, "seed": seed, "output": "unnamed"}, "recipe")
            if recipe.data.holdout is None:
                raise MeloraError(
                    "data.holdout: is not set; learning rates and epochs are chosen on a part of the training rows, so "
                    "give a share or a number of rows, e.g. holdout: 0.1"
                )
            if dataclasses.replace(recipe.data, **score).holdout is not None:
                raise MeloraError(
                    f"tasks.{self.task}.score: leaves data.holdout set, so that the score would be of the very rows "
                    "that chose rate and epoch; put holdout: null into it"
                )
        except (MeloraError, TypeError) as error:
            raise MeloraError(f"{where}: {error}") from None
        run = recipe_hash(recipe)
        output = Path(self.study.output).expanduser() / run
        return Job(self.task, self.method, dict(setting), seed, replace(recipe, output=str(output)), run, score)

    def chosen(self, setting: Setting) -> list[Job]:
        """The runs that are scored, one for each seed."""
        return [self.job(setting, seed) for seed in self.study.seeds]


def cells(study: Study) -> list[Cell]:
    """Every method on every task: task by task, the reference first, since all others are compared with it."""
    methods = sorted(study.methods, key=lambda name: name != study.reference)
    return [Cell(study, task, method) for task in study.tasks for method in methods]


def check_distinct(jobs: Iterable[Job]) -> None:
    """Raise a MeloraError if two entries of a study are the same run, which would be made once and counted twice."""
    seen: dict[str, Job] = {}
    for job in jobs:
        other = seen.setdefault(job.run, job)
        if other is not job:
            raise MeloraError(
                f"study: {other.text} and {job.text} are the same run ({job.run}); name it once, or set apart what "
                "should differ"
            )


def recipe_hash(recipe: Recipe) -> str:
    """16 hexadecimal digits that name a recipe, whatever its output folder is.

    Keys that hold their default are left out, so that a new key in a later version changes no old run's name.
    """
    values = {key: value for key, value in _told(recipe).items() if key != "output"}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, section by section; a null takes the key out."""
    result = dict(below)
    for key, value in above.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            inner = result.get(key)
            result[key] = merged(inner if isinstance(inner, Mapping) else {}, value)
        else:
            result[key] = value
    return result


def _told(section: Any) -> dict[str, Any]:
    """A dataclass as plain values, without those at their default."""
    told = {}
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        if value != default:
            told[item.name] = _told(value) if dataclasses.is_dataclass(value) else value
    return told
