"""One new adapter out of several: their weighted sum, exact or approximate, as PEFT's LoRA offers it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.merge_utils import dare_linear, dare_ties, magnitude_prune, task_arithmetic, ties
from peft.utils.other import ModulesToSaveWrapper, _freeze_adapter

from .config import MeloraConfig, positive_int
from .errors import MeloraError
from .layer import MeloraLayer

CombinationType = Literal[
    "svd",
    "linear",
    "cat",
    "ties",
    "ties_svd",
    "dare_ties",
    "dare_linear",
    "dare_ties_svd",
    "dare_linear_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
]
_PRUNING = {"ties", "dare_ties", "dare_linear", "magnitude_prune"}
_ON_FACTORS = {"linear", *_PRUNING}
_ON_UPDATES = {"svd", *(f"{kind}_svd" for kind in _PRUNING)}


@dataclass(frozen=True)
class Combination:
    """How adapters are combined: the arguments of MeloraModel.add_weighted_adapter, checked."""

    adapters: Sequence[str]
    weights: Sequence[float]
    kind: str
    svd_rank: int | None
    svd_clamp: float | None
    svd_driver: str | None
    density: float | None
    majority_sign_method: Literal["total", "frequency"]

    def __post_init__(self) -> None:
        known = ["cat", *sorted(_ON_FACTORS | _ON_UPDATES)]
        if self.kind not in known:
            raise MeloraError(f"Invalid combination_type: {self.kind}; choose one of {', '.join(known)}")
        if not self.adapters or len(self.adapters) != len(self.weights):
            raise MeloraError(
                f"{len(self.adapters)} adapters and {len(self.weights)} weights were given: one weight for each"
            )
        if not all(math.isfinite(weight) for weight in self.weights):
            raise MeloraError(f"weights must be finite numbers, got {list(self.weights)}")
        if self.kind.removesuffix("_svd") in _PRUNING and not 0 < (self.density or 0) <= 1:
            raise MeloraError(
                f"combination_type {self.kind} needs density, the share of numbers to keep, above 0 and up to 1; got "
                f"{self.density}"
            )
        if self.svd_rank is not None:
            positive_int("svd_rank", self.svd_rank)

    def mix(self, tensors: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
        """The weighted sum of tensors of one shape, by PEFT's function of that name, in at least fp32."""
        tensors = [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors]
        w = torch.tensor(weights, dtype=tensors[0].dtype, device=tensors[0].device)
        density = 1.0 if self.density is None else self.density  # None where nothing is pruned
        mixed: torch.Tensor
        match self.kind.removesuffix("_svd"):
            case "ties":
                mixed = ties(tensors, w, density, self.majority_sign_method)
            case "dare_ties":
                mixed = dare_ties(tensors, w, density, self.majority_sign_method)
            case "dare_linear":
                mixed = dare_linear(tensors, w, density)
            case "magnitude_prune":
                mixed = magnitude_prune(tensors, w, density)
            case _:
                mixed = task_arithmetic(tensors, w)
        return mixed


@torch.no_grad()
def add_weighted_adapter(model: BaseTuner, name: str, combination: Combination) -> None:
    """Add to `model` the adapter `name`: frozen, of scaling 1, on every module that one of the adapters is on.

    Raises:
        MeloraError: the adapters can't be combined like that; the model is then as it was.
    """
    _check_adapters(model, combination.adapters)
    _check_mixing({model.peft_config[adapter].mixing for adapter in combination.adapters}, combination)
    _check_permute({model.peft_config[adapter].permute for adapter in combination.adapters}, combination)
    layers = {
        key: module
        for key, module in model.model.named_modules()
        if isinstance(module, MeloraLayer) and module.scaling.keys() & set(combination.adapters)
    }
    factors = {key: combine(key, layer, combination) for key, layer in layers.items()}
    # What lies inside another adapted layer (attention's output projection) takes its settings from that layer.
    outer = {key: value for key, value in factors.items() if not any(key.startswith(f"{other}.") for other in factors)}
    model.peft_config[name] = _config([model.peft_config[adapter] for adapter in combination.adapters], outer)
    try:
        model.inject_adapter(model.model, name)
    except BaseException:
        del model.peft_config[name]
        raise
    _freeze_adapter(model.model, name)
    for key, layer in layers.items():
        for factor, values in zip(layer.mini_factors(name), factors[key], strict=True):
            factor.weight.copy_(values.reshape(factor.weight.shape))
        core = layer.core(name)
        if core is not None:
            cores = [layer.core(adapter) for adapter in combination.adapters if adapter in layer.scaling]
            core.copy_(torch.cat([of_one for of_one in cores if of_one is not None]))


def _check_adapters(model: BaseTuner, adapters: Sequence[str]) -> None:
    for adapter in adapters:
        if adapter not in model.peft_config:
            raise MeloraError(f"Adapter {adapter} does not exist; loaded: {', '.join(model.peft_config)}")
        if model.peft_config[adapter].target_parameters:
            raise MeloraError(
                f"add_weighted_adapter does not support targeting nn.Parameter (problematic adapter '{adapter}'), for "
                "LoRA neither; merge the adapters into the weights one after another instead"
            )
    for key, module in model.model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            copies = [adapter for adapter in adapters if adapter in module.modules_to_save]
            if len(copies) > 1:
                raise MeloraError(
                    "Cannot add weighted adapters if they target the same module with modules_to_save, but found 1 "
                    f"such instance(s). {key} is trained whole in {', '.join(copies)}: leave all but one of them out"
                )


def combine(module: str, layer: MeloraLayer, combination: Combination) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors (n, r', d_in / n) and (n, d_out / n, r') of the combined adapter in one layer, for scaling 1.

    Args:
        module: the layer's name, for the messages.
        layer: has at least one of the adapters.
        combination: which adapters, and how.

    Raises:
        MeloraError: n differs, r differs where it must not, or r' would not fit the layer.
    """
    pairs = zip(combination.adapters, combination.weights, strict=True)
    here = {adapter: weight for adapter, weight in pairs if adapter in layer.scaling}
    sizes = ", ".join(f"{adapter} has n={layer.n[adapter]}, r={layer.update_rank(adapter)}" for adapter in here)
    n = _common({layer.n[adapter] for adapter in here})
    if n is None:
        raise MeloraError(
            f"{module}: {sizes}; adapters are combined block by block, which needs one n: train them with equal n, or "
            "convert each with `melora export` and combine the LoRA adapters"
        )
    if combination.kind in _ON_FACTORS and _common({layer.update_rank(adapter) for adapter in here}) is None:
        raise MeloraError(
            f"{module}: {sizes}; combination_type {combination.kind} needs equal r: use cat, which is exact, or a "
            "combination_type that ends with svd"
        )
    if combination.kind == "cat":
        rank = sum(layer.update_rank(adapter) for adapter in here)
        A, B = layer.factors(next(iter(here)))
        try:
            layer.check(module, n, rank)
        except MeloraError:
            raise MeloraError(
                f"{module}: cat would give r={rank}, more than the layer takes; use combination_type svd with "
                f"svd_rank={min(math.prod(A.shape[2:]), B.shape[1])}, which is exact here"
            ) from None
        return _cat(layer, here)
    if combination.kind in _ON_FACTORS:
        return _mix_factors(layer, here, combination)
    rank = combination.svd_rank or max(layer.update_rank(adapter) for adapter in here)
    layer.check(module, n, rank)
    update = combination.mix([layer.delta_blocks(adapter).flatten(2) for adapter in here], list(here.values()))
    return _svd(update, rank, combination)


def _check_permute(permute: set[str], combination: Combination) -> None:
    """Minis are combined block by block, so all must have the same channels, which calibrated orders seldom are."""
    if permute == {"none"} or (permute == {"strided"} and combination.kind in {"cat", *_ON_FACTORS}):
        return
    raise MeloraError(
        f"{', '.join(combination.adapters)}: combination_type {combination.kind} does not take adapters with permute="
        f"{' and '.join(sorted(permute))}: convert each with `melora export` and combine the LoRA adapters"
    )


def _check_mixing(mixing: set[str], combination: Combination) -> None:
    """What mixes ranks across blocks has to stay of its form: C belongs to its ranks, the shuffle to their number."""
    way_out = "convert each with `melora export` and combine the LoRA adapters, which is exact with cat"
    if len(mixing) > 1:
        raise MeloraError(f"{', '.join(combination.adapters)}: have mixing={' and '.join(sorted(mixing))}; {way_out}")
    kind = next(iter(mixing))
    possible = {"none": True, "learned": combination.kind == "cat", "shuffle": combination.kind in _ON_FACTORS}
    if not possible[kind] and not (len(combination.adapters) == 1 and combination.kind == "linear"):
        known = "cat" if kind == "learned" else ", ".join(sorted(_ON_FACTORS))
        raise MeloraError(
            f"combination_type {combination.kind} does not take adapters with mixing={kind!r}: choose {known}, or "
            f"{way_out}"
        )


def _common(values: set[int]) -> int | None:
    return next(iter(values)) if len(values) == 1 else None


def _cat(layer: MeloraLayer, weights: dict[str, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks side by side inside each block: exact. Weight and scaling go into A."""
    A, B = [], []
    for adapter, weight in weights.items():
        A_of, B_of = layer.factors(adapter)
        # A convolution's mini may span q groups of its base: a q-th of its ranks belongs to each, in A's order.
        spanned = A_of.shape[1] // B_of.shape[2]
        A.append(A_of.unflatten(1, (spanned, -1)) * (weight * layer.scaling[adapter]))
        B.append(B_of)
    return torch.cat(A, dim=2).flatten(1, 2), torch.cat(B, dim=2)


def _mix_factors(
    layer: MeloraLayer, weights: dict[str, float], combination: Combination
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B mixed separately, as LoRA does: cheap, and far from the sum of the updates (their products cross)."""
    scaled = [weight * layer.scaling[adapter] for adapter, weight in weights.items()]
    roots = [math.sqrt(abs(value)) for value in scaled]
    signed = [math.copysign(root, value) for root, value in zip(roots, scaled, strict=True)]
    A = combination.mix([layer.factors(adapter)[0] for adapter in weights], signed)
    B = combination.mix([layer.factors(adapter)[1] for adapter in weights], roots)
    return A, B


def _svd(update: torch.Tensor, rank: int, combination: Combination) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest factors of that rank for each block of `update` (n, d_out / n, d_in / n), padded by zeros."""
    U, S, Vh = torch.linalg.svd(update, full_matrices=False, driver=combination.svd_driver)
    B, A = U[:, :, :rank] * S[:, None, :rank], Vh[:, :rank]
    if combination.svd_clamp is not None:
        limit = float(torch.quantile(torch.cat([B.flatten(), A.flatten()]), combination.svd_clamp))
        A, B = A.clamp(-limit, limit), B.clamp(-limit, limit)
    missing = rank - A.shape[1]
    return torch.nn.functional.pad(A, (0, 0, 0, missing)), torch.nn.functional.pad(B, (0, missing))


def _config(configs: list[MeloraConfig], factors: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> MeloraConfig:
    """The combined adapter's config: the first one's, with r, n and targets as the factors have them."""
    n_of = {key: A.shape[0] for key, (A, _) in factors.items()}
    r_of = {key: A.shape[1] for key, (A, _) in factors.items()}
    n, r = (Counter(sizes.values()).most_common(1)[0][0] for sizes in (n_of, r_of))
    # "^" binds a key to the one module of that full name.
    rank_pattern: dict[str, Any] = {f"^{key}": size for key, size in r_of.items() if size != r}
    return replace(
        configs[0],
        r=r,
        n=n,
        lora_alpha=r,
        use_rslora=False,
        init_weights=True,
        rank_pattern=rank_pattern,
        alpha_pattern=dict(rank_pattern),
        n_pattern={f"^{key}": size for key, size in n_of.items() if size != n},
        **_targets(configs, factors),
    )


def _targets(configs: list[MeloraConfig], factors: dict[str, Any]) -> dict[str, Any]:
    """The config's short names where they alone chose the modules, else the modules' full names."""
    plain = all(
        isinstance(config.target_modules, set) and not config.exclude_modules and config.layers_to_transform is None
        for config in configs
    )
    names = {name for config in configs for name in config.target_modules or ()} if plain else set(factors)
    return {
        "target_modules": names,
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }
