"""n, and under a budget r, for each module by the effective rank of its weight's gradient, before training.

The rules are in allocation_rule.py, what can be asked in allocation_request.py, the gradients come from gradients.py.
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from .allocation_request import given_n, modules_to_choose_for, smallest_ranks, weight_sizes
from .allocation_rule import choose_n, choose_ranks, largest_rank
from .analysis import effective_rank
from .config import AUTO, MeloraConfig
from .gradients import weight_gradients
from .targets import with_default_targets


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
            own = {module.name: module.n for module in self.modules if given_n(config, module.name) is None}
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
    module. n is `choose_n` of the effective rank and r, with mixing="learned" at most sqrt(d_in + d_out), so that C has
    no more numbers than A and B; r is config.r or its rank_pattern's, or `choose_ranks` of all effective ranks where a
    budget is given. Modules that n_pattern names keep their n. The same model, batches and seed give the same answer on
    the same machine.

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
        MeloraError: there is nothing to choose, or a target that is no linear layer, or the budget is below the
            smallest r everywhere (the message says how many parameters that takes), or see weight_gradients and
            check_targets.

    Warns:
        UserWarning: mixing="shuffle" makes modules plain LoRA, whose r has no divisor to choose n from.
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
    sizes = weight_sizes(modules)
    fixed = {name: given_n(config, name) for name in modules}
    options = config.mixing, config.init_weights
    if budget is not None:
        steps = smallest_ranks(config, modules)
        most = {name: largest_rank(*sizes[name], fixed[name], *options) for name in modules}
        ranks = choose_ranks(measured, sizes, budget, most=most, steps=steps)
    found = []
    for name, erank in measured.items():
        (d_in, d_out), r, n = sizes[name], ranks[name], fixed[name]
        n = choose_n(erank, r, d_in, d_out, *options) if n is None else n
        parameters = r * (d_in + d_out + (n * n if config.mixing == "learned" else 0))
        found.append(ModuleAllocation(name, d_in, d_out, erank, n, r, parameters))
    if config.mixing == "shuffle":
        _warn_of_lora([module for module in found if fixed[module.name] is None], budget is not None)
    allocation = Allocation(tuple(found), budget, count)
    return allocation.apply(config), allocation


def _warn_of_lora(modules: list[ModuleAllocation], with_budget: bool) -> None:
    """Tell of modules that would have more than one mini, were it not that n divides r."""
    lone = [m for m in modules if m.n == 1 and choose_n(m.effective_rank, m.r, m.d_in, m.d_out) > 1]
    if lone:
        way_out = (
            "give more budget, or n a number, which r then goes in steps of" if with_budget else "choose a larger r"
        )
        warnings.warn(
            f"mixing='shuffle': n=1, plain LoRA, in {len(lone)} of {len(modules)} modules ({lone[0].name}"
            f"{', ...' if len(lone) > 1 else ''}): r={lone[0].r} and both sizes have no divisor in common that the "
            f"gradient allows; {way_out}",
            stacklevel=3,
        )


def _effective_rank(G: torch.Tensor) -> float:
    G = G.cpu() if G.device.type == "mps" else G  # which has no fp64
    return effective_rank(torch.linalg.svdvals(G.double()))


def _by_name(values: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """(the commonest value, {pattern: value} of the modules that have another)."""
    common = Counter(values.values()).most_common(1)[0][0]
    # "^" binds a key, a regular expression to PEFT, to the one module of that full name.
    return common, {f"^{re.escape(name)}": value for name, value in values.items() if value != common}
