"""A run whose n, or r, is chosen by the gradient before its first step: when, on which rows, and where it is kept."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftConfig

from ..allocation import Allocation, allocate
from ..allocation_request import modules_to_choose_for
from ..config import AUTO, MeloraConfig
from ..errors import MeloraError
from .adapter import adapter_config
from .folder import ALLOCATION, RunFolder, read_json
from .gradient_pass import gradient_pass
from .ranks import gather, main_only, together
from .recipe import AdapterSearch, Recipe

if TYPE_CHECKING:
    from .prepare import Loaded

logger = logging.getLogger(__name__)


def check_choice(recipe: Recipe, model: Any, config: PeftConfig) -> None:
    """Check on a model, of shapes alone if need be, that the n or r that a recipe leaves open can be chosen.

    Raises:
        MeloraError: see melora.allocate.
    """
    if recipe.searches_adapter and isinstance(config, MeloraConfig):
        modules_to_choose_for(model, config, recipe.adapter_search.budget)


def what_is_chosen(recipe: Recipe) -> str:
    """For a person: what of n and r a recipe leaves open."""
    open_n, open_r = recipe.adapter.get("n") == AUTO, recipe.adapter_search.budget is not None
    return "n and r" if open_n and open_r else "n" if open_n else "r"


def with_some_n(recipe: Recipe) -> Recipe:
    """The recipe with a number in place of n: auto, and without a search: for what costs the same whatever n is."""
    n = {"n": 1} if recipe.adapter.get("n") == AUTO else {}
    return replace(recipe, adapter={**recipe.adapter, **n}, adapter_search=AdapterSearch())


def allocation_for(loaded: "Loaded", folder: RunFolder) -> Allocation | None:
    """The n and r of a run, where its recipe leaves them open: chosen now, by the main rank, for all ranks alike.

    A run that goes on from a checkpoint keeps what it began with.

    Raises:
        MeloraError: see melora.allocate; or the interrupted run's file is missing or damaged.
    """
    if not loaded.recipe.searches_adapter:
        return None
    if folder.checkpoint is not None:
        with together():
            return read_allocation(folder.partial / ALLOCATION)
    chosen: list[Allocation] = []
    main_only(lambda: chosen.append(_choose(loaded)))
    found: Allocation = gather(chosen[0] if chosen else None)[0]
    return found


def read_allocation(file: Path) -> Allocation:
    """What a run's allocation.json holds.

    Raises:
        MeloraError: it is missing or damaged.
    """
    values = read_json(file)
    try:
        return Allocation.from_dict(values)
    except (AttributeError, KeyError, TypeError):
        raise MeloraError(
            f"{file}: is no list of modules with their n and r; start the run again with --overwrite"
        ) from None


def allocation_file(loaded: "Loaded", allocation: Allocation) -> dict[str, Any]:
    """What allocation.json holds: the choice, and what it was made from."""
    return {"seed": loaded.recipe.seed, **allocation.to_dict()}


def _choose(loaded: "Loaded") -> Allocation:
    recipe, model, search = loaded.recipe, loaded.base.model, loaded.recipe.adapter_search
    config = adapter_config(recipe.adapter, loaded.task.peft_type, loaded.new_modules)
    if not isinstance(config, MeloraConfig):
        raise TypeError(f"n and r are chosen for MELORA alone, got {config.peft_type}")
    with gradient_pass(loaded) as batches:
        logger.info("choosing %s of each module by the gradient of %d batches", what_is_chosen(recipe), len(batches))
        return allocate(model, config, batches, budget=search.budget, seed=recipe.seed)[1]
