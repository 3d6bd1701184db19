"""Everything up to the first step: checks, data, base model, adapter. Nothing is written here."""

import logging
from dataclasses import dataclass
from typing import Any

import transformers
from peft import PeftModel

from ..errors import MeloraError
from .adapter import adapter_config, attach
from .arguments import check_training
from .base import fingerprint, load_base, load_tokenizer, longest_input
from .data import Split, read_splits
from .optimizer import check_rates
from .ranks import is_main
from .recipe import Recipe
from .source import ModelSource, find_model
from .tasks import Encoded, Task, task_class

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start.

    Attributes:
        recipe: what was asked for.
        source: where the base model is.
        task: with what it learned from the training labels.
        tokenizer: the base model's.
        model: base model with a fresh adapter, on the CPU or the meta device.
        new_modules: modules that the checkpoint had no weights for.
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
    model: PeftModel
    new_modules: list[str]
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    held_out: Split
    rows: dict[str, int]
    cut: dict[str, int]
    dropped: dict[str, int]
    fingerprint: str | None


def prepare(recipe: Recipe, *, on_meta: bool = False) -> Prepared:
    """Check a recipe, from the cheapest check to the dearest, and build what it describes.

    Args:
        recipe: what to build.
        on_meta: build the model without its weights, for a dry run.

    Raises:
        MeloraError: whatever is wrong with the recipe, the data or the model.
    """
    cls = task_class(recipe.task)
    adapter_config(recipe.adapter, cls.peft_type)
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
    config = adapter_config(recipe.adapter, cls.peft_type, base.new_modules)
    model = attach(base.model, config, on_meta=on_meta)
    check_rates(recipe, model)
    return Prepared(
        recipe=recipe,
        source=source,
        task=task,
        tokenizer=tokenizer,
        model=model,
        new_modules=base.new_modules,
        train=task.arrange(train.examples, recipe),
        validation=validation.examples,
        held_out=splits[1],
        rows={name: len(part.examples) for name, part in encoded.items()},
        cut={name: part.cut for name, part in encoded.items()},
        dropped={name: part.dropped for name, part in encoded.items()},
        fingerprint=mark,
    )


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
