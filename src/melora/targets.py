"""Which modules a config means in a model, and whether each can be adapted: checked before anything is allocated."""

import copy
import difflib
import warnings
from dataclasses import replace
from typing import cast

from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.error import NoMatchingPeftModuleError
from peft.utils.other import get_pattern_key, match_target_against_key
from peft.utils.quantization_utils import (
    QuantizationBackend,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

from .config import MeloraConfig
from .dispatch import layer_class
from .errors import MeloraError
from .initial import check_start, has_start
from .parameters import check_config, check_parameter, parameter_sizes
from .shapes import check_exchange
from .sources import check_kind, check_source


def module_settings(config: MeloraConfig, module: str) -> tuple[int, int, float]:
    """(r, n, lora_alpha) of a module: the config's, or what its patterns say for that name.

    Raises:
        MeloraError: n is "auto" still.
    """
    config.check_n_is_chosen()
    r_key = get_pattern_key(list(config.rank_pattern), module)
    n_key = get_pattern_key(list(config.n_pattern), module)
    alpha_key = get_pattern_key(list(config.alpha_pattern), module)
    return (
        config.rank_pattern.get(r_key, config.r),
        config.n_pattern.get(n_key, cast(int, config.n)),
        config.alpha_pattern.get(alpha_key, config.lora_alpha),
    )


class NoTargetError(MeloraError, NoMatchingPeftModuleError):
    """No module of the model bears a target's name; PEFT's own exception for that, too."""


def check_targets(model: nn.Module, config: MeloraConfig, *, sources: bool = True) -> None:
    """Check every module that `config` means in `model`; nothing is changed.

    Args:
        model: the base model, or one with adapters.
        config: of the new adapter.
        sources: whether the weights and gradients that A and B start from must be there; not for shapes alone.

    Raises:
        NoTargetError: no module matches; the message offers the closest names.
        MeloraError: a module's type is not supported, or n or r does not fit it.

    Warns:
        UserWarning: some of the listed names match nothing while others do.
        RuntimeWarning: a key of n_pattern matches no target.
    """
    config = copy.copy(config)
    if config.target_modules == DUMMY_TARGET_MODULES:
        return
    modules, targeted = _matched(model, config)
    parameters = _targeted_parameters(config, modules)
    _check_n_pattern(config, [*targeted, *parameters])
    quantization = get_quantization_kwargs(model)
    read: list[tuple[str, nn.Module, QuantizationBackend | None]] = []
    for name, module in targeted.items():
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        _check_called(name, model)
        r, n, _ = module_settings(config, name)
        backend = resolve_quantization_backend(base, **quantization)
        cls = layer_class(name, base, backend)
        cls.check_base(name, base, n, r)
        cls.check_options(name, base, n, r, config)
        if has_start(config.init_weights):
            check_kind(name, base, cls, config.init_weights)
            check_start(name, config.init_weights, *cls.block_sizes(name, base, n), r)
            read.append((name, base, backend))
    _check_parameters(config, model, targeted, parameters)
    if sources and not config.awaits_tensors:  # last, since it reads every weight
        if has_start(config.init_weights):
            read.extend((key, base, None) for key, base in parameters.items())
        for name, base, backend in read:
            check_source(name, base, backend, config.init_weights)


def with_default_targets(model: nn.Module, config: MeloraConfig) -> MeloraConfig:
    """The config with LoRA's default targets for the architecture where it names none, as PEFT fills them in."""
    if config.target_modules is not None:
        return config
    kind = str(getattr(getattr(model, "config", None), "model_type", None))
    targets = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind)
    if targets is None:
        raise MeloraError(f"target_modules: PEFT has no default for model_type {kind!r}; name the modules to adapt")
    return replace(config, target_modules=targets if isinstance(targets, str) else set(targets))


def targeted_modules(model: nn.Module, config: MeloraConfig) -> dict[str, nn.Module]:
    """The modules that `config.target_modules` means in `model`, by name.

    Raises:
        NoTargetError: no module matches; the message offers the closest names.
    """
    return _matched(model, copy.copy(config))[1]


def _matched(model: nn.Module, config: MeloraConfig) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """All modules by name, and the targets among them. Changes "all-linear" in `config` into names."""
    _maybe_include_all_linear_layers(config, model)
    modules = _outer_modules(model)
    _check_names(config, modules)
    return modules, {name: module for name, module in modules.items() if check_target_module_exists(config, name)}


# Models whose fused kernels read out_proj's and conv1d's weights and call neither: PEFT's list for LoRA.
_MAMBA_TYPES = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}


def _check_called(name: str, model: nn.Module) -> None:
    """Refuse what its parent reads and never calls: Mamba's two, and nn.MultiheadAttention's output projection."""
    parent, _, leaf = name.rpartition(".")
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if leaf in ("out_proj", "conv1d") and model_type in _MAMBA_TYPES:
        raise MeloraError(
            f"{name}: Module '{leaf}' is incompatible with Mamba-based models (model_type='{model_type}'), whose fused "
            "kernels pass an adapter over: take it out of target_modules, or name it in exclude_modules"
        )
    if leaf == "out_proj" and isinstance(model.get_submodule(parent), nn.MultiheadAttention):
        raise MeloraError(
            f"{name}: nn.MultiheadAttention reads this layer's weight and never calls it, so an adapter on it would "
            f"have no effect: target {parent} itself, or leave {name} out by exclude_modules"
        )


def _targeted_parameters(config: MeloraConfig, modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Every parameter that target_parameters means, by its full name, and the module that holds it."""
    found: dict[str, nn.Module] = {}
    for name, module in modules.items():
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        for parameter_name, _ in base.named_parameters(recurse=False):
            key = f"{name}.{parameter_name}"
            if any(key == target or key.endswith(f".{target}") for target in config.target_parameters or ()):
                found[key] = base
    return found


def _check_parameters(
    config: MeloraConfig, model: nn.Module, targeted: dict[str, nn.Module], parameters: dict[str, nn.Module]
) -> None:
    if not config.target_parameters:
        return
    if not parameters and not targeted:
        known = [name for name, _ in model.named_parameters()]
        close = dict.fromkeys(key for t in config.target_parameters for key in difflib.get_close_matches(t, known, n=3))
        hint = f" (closest: {', '.join(close)})" if close else ""
        raise NoTargetError(
            f"target_parameters={sorted(config.target_parameters)}: the model has no parameter of these names{hint}; "
            "give names as model.named_parameters() has them, or their ends"
        )
    check_config(config)
    for key, base in parameters.items():
        name, _, parameter_name = key.rpartition(".")
        if name in targeted:
            raise MeloraError(
                f"{key} is in target_parameters, and its module {name} in target_modules: choose one of the two "
                "(target_modules=[] adapts parameters alone)"
            )
        r, n, _ = module_settings(config, key)
        check_parameter(key, base, parameter_name, n, r)
        check_exchange(key, n, r, config.mixing)
        if config.permute != "none":
            raise MeloraError(f"{key}: permute={config.permute!r} is for linear layers: use permute='none'")
        d_in, d_out = parameter_sizes(base, parameter_name)
        check_start(key, config.init_weights, d_out // n, d_in // n, r)
        if config.init_weights == "lora_ga":
            raise MeloraError(
                f"{key}: init_weights='lora_ga' takes gradients of linear layers alone; leave target_parameters out, "
                "or use init_weights='pissa'"
            )


def _check_n_pattern(config: MeloraConfig, targeted: list[str]) -> None:
    """Warn of keys that match nothing, as PEFT does for rank_pattern and alpha_pattern."""
    used = {get_pattern_key(list(config.n_pattern), name) for name in targeted}
    unused = sorted(config.n_pattern.keys() - used)
    if unused:
        warnings.warn(
            f"The following n_pattern keys did not match any targeted module and were ignored: {unused}.",
            RuntimeWarning,
            stacklevel=2,
        )


def _outer_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by name but those inside adapter layers, as PEFT's own matching sees them."""
    outer: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not name or name.startswith(inside or ("\0",)):
            continue
        outer[name] = module
        if isinstance(module, BaseTunerLayer):
            inside = (*inside, f"{name}.")
    return outer


def _check_names(config: MeloraConfig, modules: dict[str, nn.Module]) -> None:
    targets = config.target_modules
    if targets is None or not targets:
        return
    if isinstance(targets, str):
        unknown = [] if any(match_target_against_key(targets, name) for name in modules) else [targets]
    else:
        known = {suffix for name in modules for suffix in _suffixes(name)}
        unknown = sorted(target for target in targets if target not in known)
    if not unknown:
        return
    missing = ", ".join(f"{target!r} ({_closest(target, modules)})" for target in unknown)
    if isinstance(targets, str) or len(unknown) == len(targets):
        raise NoTargetError(
            f"Target modules {targets if isinstance(targets, str) else unknown} not found in the base model. "
            f"Please check the target modules and try again: no module matches {missing}"
        )
    warnings.warn(f"target_modules: no module of the model matches {missing}; the others are adapted", stacklevel=2)


def _suffixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]


def _closest(target: str, modules: dict[str, nn.Module]) -> str:
    """What may have been meant by `target`: names close to it, else the names of the model's linear layers."""
    linear = {name for name, module in modules.items() if isinstance(module, nn.Linear | Conv1D | BaseTunerLayer)}
    leaves = list(dict.fromkeys(name.rpartition(".")[2] for name in modules if name in linear))
    close = difflib.get_close_matches(target, dict.fromkeys([*leaves, *sorted(linear)]), n=3, cutoff=0.6)
    if close:
        return f"closest: {', '.join(close)}"
    return f"linear layers of this model: {', '.join(leaves[:12])}{', ...' if len(leaves) > 12 else ''}"
