"""n, and under a budget r, for each module by the effective rank of its weight's gradient, before training.

The rules are in allocation_rule.py, the gradients come from gradients.py.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import get_pattern_key
from torch import nn

from .allocation_rule import choose_n, choose_ranks
from .analysis import effective_rank
from .config import AUTO, MeloraConfig, positive_int
from .errors import MeloraError
from .gradients import check_linear, weight_gradients
from .layer import MeloraLayer
from .targets import check_targets, targeted_modules, with_default_targets


@dataclass(frozen=True)
class ModuleAllocation:
    """What one module was given.

    Attributes:
        name: the module.
        d_in, d_out: sizes of its weight.
        effective_rank: exp of the entropy of its gradient's normalised singular values; 0 if the gradient is 0.
        n, r: number of minis and rank of one.
        parameters: numbers in A and B, and in C where mixing is learned.
    """

    name: str
    d_in: int
    d_out: int
    effective_rank: float
    n: int
    r: int
    parameters: int


@dataclass(frozen=True)
class Allocation:
    """What `allocate` found, module by module.

    Attributes:
        modules: those whose n or r was chosen, in the model's order.
        budget: most parameters that they might have together; None where r was given.
        batches: how many batches the gradients are the mean of.
    """

    modules: tuple[ModuleAllocation, ...]
    budget: int | None
    batches: int

    @property
    def parameters(self) -> int:
        return sum(module.parameters for module in self.modules)

    def apply(self, config: MeloraConfig) -> MeloraConfig:
        """`config` with these n and r: the commonest as n and r, the others in patterns, each for one module alone."""
        changes: dict[str, Any] = {}
        if config.n == AUTO:
            own = {module.name: module.n for module in self.modules if _pinned(config, module.name) is None}
            n, others = _by_name(own or {module.name: module.n for module in self.modules})
            changes |= {"n": n, "n_pattern": {**config.n_pattern, **others}}
        if self.budget is not None:
            r, others = _by_name({module.name: module.r for module in self.modules})
            changes |= {"r": r, "rank_pattern": others}
        return replace(config, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` takes them back."""
        modules = [asdict(module) for module in self.modules]
        return {"batches": self.batches, "budget": self.budget, "parameters": self.parameters, "modules": modules}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Allocation":
        """What `to_dict` gave; KeyError or TypeError if it did not."""
        return cls(tuple(ModuleAllocation(**row) for row in values["modules"]), values["budget"], values["batches"])


def allocate(
    model: nn.Module,
    config: MeloraConfig,
    batches: Iterable[Any],
    *,
    budget: int | None = None,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> tuple[MeloraConfig, Allocation]:
    """Choose n (where config.n is "auto"), and r under a budget, for every target by its gradient; nothing is trained.

    One forward and backward pass for each batch (gradients.py), then one singular value decomposition in fp64 for each
    module. n is `choose_n` of the effective rank and r; r is config.r or its rank_pattern's, or `choose_ranks` of all
    effective ranks where a budget is given. Modules that n_pattern names keep their n. The same model, batches and seed
    give the same answer on the same machine.

    Args:
        model: the base model, with its weights, in any dtype, 8 or 4 bits included; it comes out as it was.
        config: says which modules; it stays as it is. The scaling is lora_alpha / r: where r differs, so does that.
        batches: a few of the training set; see weight_gradients for these and the arguments below.
        budget: most parameters that the adapter's factors may have together.
        loss: (model, batch) -> a scalar; by default model(**batch).loss.
        device: where gradients are kept, and decomposed.
        seed: of torch's random numbers during the pass.

    Returns:
        (the config that get_peft_model takes, what was found).

    Raises:
        MeloraError: there is nothing to choose, or a target that is no linear layer, or the budget is below r=1
            everywhere (the message says how many parameters that takes), or see weight_gradients and check_targets.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    config = with_default_targets(base, config)
    modules, ranks = modules_to_choose_for(base, config, budget)
    count = 0

    def counted() -> Iterator[Any]:
        nonlocal count
        for batch in batches:
            count += 1
            yield batch

    gradients = weight_gradients(base, modules, counted(), loss=loss, device=device, seed=seed)
    measured = {name: _effective_rank(G) for name, G in gradients.items()}
    sizes = {name: _sizes(module) for name, module in modules.items()}
    if budget is not None:
        ranks = choose_ranks(measured, sizes, budget)
    found = []
    for name, erank in measured.items():
        d_in, d_out = sizes[name]
        fixed = _pinned(config, name)
        r = ranks[name]
        n = choose_n(erank, r, d_in, d_out, config.mixing) if fixed is None else fixed
        parameters = r * (d_in + d_out + (n * n if config.mixing == "learned" else 0))
        found.append(ModuleAllocation(name, d_in, d_out, erank, n, r, parameters))
    allocation = Allocation(tuple(found), budget, count)
    return allocation.apply(config), allocation


def modules_to_choose_for(
    model: nn.Module, config: MeloraConfig, budget: int | None
) -> tuple[dict[str, nn.Module], dict[str, int]]:
    """(the modules whose n or r is to be chosen, their r as the config has it); all that can be checked is checked.

    Raises:
        MeloraError: see allocate.
    """
    check_request(config, budget)
    config = with_default_targets(model, config)
    check_targets(model, replace(config, n=1) if config.n == AUTO else config, sources=False)
    targets = targeted_modules(model, config)
    modules = {name: module for name, module in targets.items() if budget is not None or _pinned(config, name) is None}
    if not modules:
        raise MeloraError("n='auto': n_pattern names every target, so there is nothing to choose; give n a number")
    check_linear(model, modules)
    if budget is not None:
        smallest = sum(map(sum, (_sizes(module) for module in modules.values())))
        if budget < smallest:
            raise MeloraError(
                f"budget={budget:,} is below {smallest:,}, what r=1 takes in these {len(modules)} modules; raise it, "
                "or adapt fewer modules"
            )
    r_of = {
        name: config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), name), config.r) for name in modules
    }
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


def _effective_rank(G: torch.Tensor) -> float:
    G = G.cpu() if G.device.type == "mps" else G  # which has no fp64
    return effective_rank(torch.linalg.svdvals(G.double()))


def _pinned(config: MeloraConfig, name: str) -> int | None:
    """The n that the config gives this module; None if it is to be chosen."""
    n = config.n_pattern.get(get_pattern_key(list(config.n_pattern), name), config.n)
    return None if n == AUTO else n


def _sizes(module: nn.Module) -> tuple[int, int]:
    return MeloraLayer.sizes_of(module.get_base_layer() if isinstance(module, BaseTunerLayer) else module)


def _by_name(values: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """(the commonest value, {pattern: value} of the modules that have another)."""
    common = Counter(values.values()).most_common(1)[0][0]
    # "^" binds a key, a regular expression to PEFT, to the one module of that full name.
    return common, {f"^{re.escape(name)}": value for name, value in values.items() if value != common}
