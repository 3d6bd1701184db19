"""Everything up to the first step: checks, data, base model, adapter. Nothing is written here."""

import logging
from dataclasses import dataclass, fields
from typing import Any

import transformers
from peft import PeftModel

from ..allocation import Allocation
from ..allocation_request import check_request
from ..errors import MeloraError
from .adapter import adapter_config, attach
from .allocating import check_choice
from .arguments import check_training
from .base import Base, fingerprint, load_base, load_tokenizer, longest_input
from .data import Split, read_splits
from .optimizer import check_rates
from .ranks import is_main
from .recipe import Recipe
from .source import ModelSource, find_model
from .start import order_channels, prepare_start
from .tasks import Encoded, Task, task_class

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A run's data and base model, before there is an adapter.

    Attributes:
        recipe: what was asked for.
        source: where the base model is.
        task: with what it learned from the training labels.
        tokenizer: the base model's.
        base: the base model, on the CPU or the meta device.
        train, validation: encoded examples.
        held_out: the validation rows as they were read.
        rows: how many rows of each there are, however many are packed into one example.
        cut: how many rows of each max_length cut.
        dropped: how many rows of each were left out because nothing to learn was left of them.
        fingerprint: recognises the base model again; None on the meta device, and on all ranks but the main one.
    """

    recipe: Recipe
    source: ModelSource
    task: Task
    tokenizer: Any
    base: Base
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    held_out: Split
    rows: dict[str, int]
    cut: dict[str, int]
    dropped: dict[str, int]
    fingerprint: str | None

    @property
    def new_modules(self) -> list[str]:
        """Modules that the checkpoint had no weights for."""
        return self.base.new_modules


@dataclass(frozen=True)
class Prepared(Loaded):
    """A run that is ready to start.

    Attributes:
        model: base model with a fresh adapter, on the CPU or the meta device.
        allocation: the n and r that were chosen for it; None if the recipe gives them.
    """

    model: PeftModel
    allocation: Allocation | None = None


def prepare(recipe: Recipe, *, on_meta: bool = False) -> Prepared:
    """Check a recipe, from the cheapest check to the dearest, and build what it describes.

    Args:
        recipe: what to build; on the meta device it may leave n or r to be chosen.
        on_meta: build the model without its weights, for a dry run.

    Raises:
        MeloraError: whatever is wrong with the recipe, the data or the model.
    """
    return adapt(load(recipe, on_meta=on_meta), on_meta=on_meta)


def load(recipe: Recipe, *, on_meta: bool = False) -> Loaded:
    """All of `prepare` but the adapter, which is checked as far as it can be without a model."""
    cls = task_class(recipe.task)
    config = adapter_config(recipe.adapter, cls.peft_type)
    if recipe.searches_adapter:
        check_request(config, recipe.adapter_search.budget)
    check_training(recipe.training, cls)
    splits = read_splits(recipe.data)
    task = cls.fit(splits[0])
    source = find_model(recipe.model)
    tokenizer = load_tokenizer(source)
    _check_length(recipe, source, tokenizer)
    train, validation = (task.encode(split, tokenizer, recipe.data) for split in splits)
    encoded = {"train": train, "validation": validation}
    for split in splits:
        _report_cut(split, encoded[split.name], recipe.data.max_length)

    transformers.set_seed(recipe.seed)
    base = load_base(source, recipe.model, task, on_meta=on_meta)
    mark = None if on_meta or not is_main() else fingerprint(base.model, base.new_modules)
    if base.new_modules:
        logger.info("new modules, trained and saved with the adapter: %s", ", ".join(base.new_modules))
    return Loaded(
        recipe=recipe,
        source=source,
        task=task,
        tokenizer=tokenizer,
        base=base,
        train=task.arrange(train.examples, recipe),
        validation=validation.examples,
        held_out=splits[1],
        rows={name: len(part.examples) for name, part in encoded.items()},
        cut={name: part.cut for name, part in encoded.items()},
        dropped={name: part.dropped for name, part in encoded.items()},
        fingerprint=mark,
    )


def adapt(loaded: Loaded, allocation: Allocation | None = None, *, on_meta: bool = False) -> Prepared:
    """Put a fresh adapter into a loaded run's base model.

    Args:
        loaded: what `load` gave, right before: torch's random state decides the adapter's weights.
        allocation: the n and r that were chosen, where the recipe leaves them open.
        on_meta: the model has no weights.

    Raises:
        MeloraError: the adapter does not fit the model.
    """
    recipe, model = loaded.recipe, loaded.base.model
    config = adapter_config(recipe.adapter, loaded.task.peft_type, loaded.new_modules)
    if on_meta:
        check_choice(recipe, model, config)
    if allocation is not None:
        config = allocation.apply(config)
    if not on_meta:
        config = prepare_start(loaded, config)
    values = {item.name: getattr(loaded, item.name) for item in fields(Loaded)}
    adapted = attach(model, config, on_meta=on_meta)
    check_rates(recipe, adapted)
    if not on_meta:
        order_channels(loaded, adapted, config)
    return Prepared(**values, model=adapted, allocation=allocation)


def _check_length(recipe: Recipe, source: ModelSource, tokenizer: Any) -> None:
    longest = longest_input(source, tokenizer)
    if recipe.data.max_length > longest:
        raise MeloraError(
            f"data.max_length: {recipe.data.max_length} is more than the {longest} tokens that model "
            f"{source.name} takes; set data.max_length={longest} or less"
        )


def _report_cut(split: Split, encoded: Encoded, max_length: int) -> None:
    if encoded.cut:
        logger.warning(
            "%s: %d of %d rows are longer than data.max_length=%d tokens and are cut",
            split.path,
            encoded.cut,
            len(split),
            max_length,
        )
    if encoded.dropped:
        logger.warning(
            "%s: %d of %d rows are left out: their prompt alone fills data.max_length=%d tokens",
            split.path,
            encoded.dropped,
            len(split),
            max_length,
        )
