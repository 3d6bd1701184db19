"""The recipe's adapter section: a method's name, and that method's own config."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from peft import AdaLoraConfig, PeftConfig, PeftModel, PromptLearningConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

import melora  # noqa: F401 - registers MELORA

from ..config import AUTO, MeloraConfig
from ..errors import MeloraError
from . import plain_methods  # noqa: F401 - registers HEAD, BIAS and FULL
from .adalora import LATER
from .plain_configs import shown_targets
from .schema import convert, nearest, one_line

# Set from the task and the model, so that a recipe can't contradict them.
_OURS = ("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping")


def adapter_config(adapter: Mapping[str, Any], task_type: str, modules_to_save: Iterable[str] = ()) -> PeftConfig:
    """The PEFT config that a recipe's adapter section describes.

    Args:
        adapter: `method` (default melora) and fields of that method's config.
        task_type: one of PEFT's TaskType names.
        modules_to_save: the model's new modules, trained and saved whole beside those that the section names.

    Raises:
        MeloraError: an unknown method or field, or a value that the method's config does not take.
    """
    fields = {key: value for key, value in adapter.items() if key != "method"}
    method = adapter.get("method", "melora")
    methods = {str(getattr(key, "value", key)).lower(): cls for key, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    tuners = {str(getattr(key, "value", key)).lower() for key in PEFT_TYPE_TO_TUNER_MAPPING}
    known = sorted(tuners & methods.keys())
    if method not in known:
        raise MeloraError(f"adapter.method: unknown method {method!r}; {nearest(str(method), known)}")
    for key in _OURS:
        if key in fields:
            raise MeloraError(f"adapter.{key}: is set from the task and the model; remove it from the recipe")
    cls = methods[method]
    if issubclass(cls, PromptLearningConfig):
        raise MeloraError(
            f"adapter.method: {method} trains a prompt and no weights of a layer, which is not supported here; take a "
            "method such as melora, lora or ia3"
        )
    typed = convert(cls, fields, "adapter")
    if cls is AdaLoraConfig and typed.get("total_step") is None:
        typed["total_step"] = LATER  # the run's length sets it
    _check_numbers(typed)
    extra = list(modules_to_save)
    if extra:
        typed["modules_to_save"] = sorted({*(typed.get("modules_to_save") or []), *extra})
    try:
        return cls(task_type=task_type, **typed)
    except (TypeError, ValueError) as error:
        text = one_line(error)
        raise MeloraError(text if text.startswith("adapter") else f"adapter: {text}") from None


def attach(model: Any, config: PeftConfig, *, on_meta: bool = False) -> PeftModel:
    """Put a fresh adapter into the model (on_meta: shapes only, for a dry run, where n=1 stands for n="auto").

    Raises:
        MeloraError: the config does not fit the model: targets not found, sizes not divisible, rank too high, nothing
            to train.
    """
    if on_meta and isinstance(config, MeloraConfig) and config.n == AUTO:
        config = replace(config, n=1)  # the counts are the same, whatever n is
    rank = getattr(config, "r", None)
    largest = max((max(m.weight.shape) for m in model.modules() if isinstance(m, torch.nn.Linear)), default=0)
    if isinstance(rank, int) and 0 < largest < rank:
        raise MeloraError(
            f"adapter.r: {rank} is above {largest}, the largest size of any weight of the model; lower it"
        )
    # PEFT keeps the objects that it is given and adds every name that a head might have; the list is ours to correct.
    wanted = list(config.modules_to_save or [])
    try:
        peft_model = get_peft_model(model, config, low_cpu_mem_usage=on_meta)
    except ValueError as error:
        if isinstance(error, MeloraError):
            raise
        targets = shown_targets(getattr(config, "target_modules", None))
        raise MeloraError(f"adapter with target_modules={targets}: {one_line(error)}") from None
    present = [name.rsplit(".", 1)[-1] for name, _ in model.named_modules()]
    config.modules_to_save = sorted({*wanted, *(set(config.modules_to_save or []) & set(present))}) or None
    if not any(parameter.requires_grad for parameter in peft_model.parameters()):
        raise MeloraError(
            f"adapter.method {method_of(config)}: the model has no new module, such as a classifier, so there is "
            "nothing to train; name modules in adapter.modules_to_save, or choose another method"
        )
    return peft_model


def method_of(config: PeftConfig) -> str:
    """The name that a recipe gives a config's method."""
    return str(getattr(config.peft_type, "value", config.peft_type)).lower()


def adapter_and_head(model: PeftModel) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The trainable parameters by name: (the adapter's, those of modules trained whole).

    Where the base model's own weights are trained (plain_methods.py), they stand in the adapter's place.
    """
    adapter: dict[str, torch.Tensor] = {}
    head: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (head if "modules_to_save" in name else adapter)[name] = parameter
    return adapter, head


def _check_numbers(fields: Mapping[str, Any]) -> None:
    """What PEFT's own configs let pass: a number that is not finite, a rank or alpha of 0 or less."""
    for key, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not math.isfinite(value) or (key in ("r", "n", "lora_alpha", "alpha") and value <= 0):
            raise MeloraError(f"adapter.{key}: must be a finite number above 0, got {value!r}")
