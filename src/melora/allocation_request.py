"""What may be asked of melora.allocate, checked before a gradient is taken."""

import math
from collections.abc import Mapping
from dataclasses import replace

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import get_pattern_key
from torch import nn

from .allocation_rule import possible_n, rank_step
from .config import AUTO, MeloraConfig, positive_int
from .errors import MeloraError
from .gradients import check_linear
from .layer import MeloraLayer
from .shapes import divisors
from .targets import check_targets, targeted_modules, with_default_targets


def modules_to_choose_for(
    model: nn.Module, config: MeloraConfig, budget: int | None
) -> tuple[dict[str, nn.Module], dict[str, int]]:
    """(the modules whose n or r is to be chosen, their r as the config has it); all that can be checked is checked.

    Raises:
        MeloraError: see allocate.
    """
    check_request(config, budget)
    config = with_default_targets(model, config)
    check_targets(model, _for_check(config, budget), sources=False)
    targets = targeted_modules(model, config)
    modules = {name: module for name, module in targets.items() if budget is not None or given_n(config, name) is None}
    if not modules:
        raise MeloraError("n='auto': n_pattern names every target, so there is nothing to choose; give n a number")
    check_linear(model, modules)
    r_of = {
        name: config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), name), config.r) for name in modules
    }
    if budget is not None:
        _check_budget(config, modules, budget)
    elif config.mixing == "shuffle":
        _check_divisors(modules, r_of)
    return modules, r_of


def check_request(config: MeloraConfig, budget: int | None) -> None:
    """Check what can be checked without a model.

    Raises:
        MeloraError: nothing is to be chosen, or what is to be chosen is given as well.
    """
    if budget is None and config.n != AUTO:
        raise MeloraError(f"n={config.n} is a number, and no budget is given: set n='auto', or a budget to choose r by")
    if budget is not None:
        positive_int("budget", budget)
        if config.rank_pattern:
            raise MeloraError("budget: chooses r for every module, and rank_pattern gives it; leave one of them out")
        if config.mixing == "learned":
            raise MeloraError(
                "budget: with mixing='learned' a module has r n^2 parameters more, which follow from r and not r from "
                "them; leave budget out, or use mixing='none'"
            )
    if config.target_parameters:
        raise MeloraError(
            "target_parameters: gradients are taken of linear layers alone; give n a number and leave budget out"
        )


def given_n(config: MeloraConfig, name: str) -> int | None:
    """The n that the config gives this module; None if it is to be chosen."""
    n = config.n_pattern.get(get_pattern_key(list(config.n_pattern), name), config.n)
    return None if n == AUTO else n


def weight_sizes(modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """(d_in, d_out) of each linear layer, or of the base of an adapted one."""
    bases = {name: m.get_base_layer() if isinstance(m, BaseTunerLayer) else m for name, m in modules.items()}
    return {name: MeloraLayer.sizes_of(base) for name, base in bases.items()}


def smallest_ranks(config: MeloraConfig, modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """What each module's r begins with under a budget, and goes in steps of."""
    return {name: rank_step(given_n(config, name), config.mixing) for name in modules}


def _for_check(config: MeloraConfig, budget: int | None) -> MeloraConfig:
    """The config with what is to be chosen at its smallest."""
    if config.n == AUTO:
        config = replace(config, n=1)
    if budget is None:
        return config
    # The r that is chosen is a multiple of n, which r=1 is not.
    return replace(config, r=1, mixing="none" if config.mixing == "shuffle" else config.mixing)


def _check_budget(config: MeloraConfig, modules: Mapping[str, nn.Module], budget: int) -> None:
    steps, sizes = smallest_ranks(config, modules), weight_sizes(modules)
    smallest = sum(steps[name] * sum(sizes[name]) for name in modules)
    if budget < smallest:
        least = "r=1" if max(steps.values()) == 1 else "the smallest r (n, as mixing='shuffle' asks)"
        raise MeloraError(
            f"budget={budget:,} is below {smallest:,}, what {least} takes in these {len(modules)} modules; raise it, "
            "or adapt fewer modules"
        )


def _check_divisors(modules: Mapping[str, nn.Module], r_of: Mapping[str, int]) -> None:
    """Refuse a shuffle in which every n could only be 1, plain LoRA, because it divides r."""
    sizes = weight_sizes(modules)
    if any(len(possible_n(r_of[name], *sizes[name], "shuffle")) > 1 for name in modules):
        return
    for name, (d_in, d_out) in sizes.items():
        shared = divisors(math.gcd(d_in, d_out))[1:4]
        if shared:
            raise MeloraError(
                f"mixing='shuffle' with n='auto': n divides r, so that with r={r_of[name]} it is 1 everywhere, plain "
                f"LoRA: choose r={' or '.join(map(str, shared))}, or a multiple, or mixing='learned', which asks "
                "nothing of r"
            )
