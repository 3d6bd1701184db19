"""The gradients that `adapter.init_weights: lora_ga` starts from: taken of rows of the training data, before step 1."""

import logging
import random
from typing import Any

import torch
from peft import PeftConfig

from ..config import MeloraConfig
from ..lora_ga import preprocess_lora_ga
from .ranks import world_size
from .recipe import Recipe
from .tasks import Task

logger = logging.getLogger(__name__)

# 64 rows, as many as LoRA-GA's authors sample; few at a time, since there is no adapter yet that saves memory.
BATCHES, ROWS = 8, 8


def measure_start(
    recipe: Recipe, task: Task, tokenizer: Any, model: Any, config: PeftConfig, examples: list[dict[str, Any]]
) -> None:
    """Do what has to come before the adapter is made: nothing, unless it starts from gradients.

    The rows are drawn by the recipe's seed, so a resumed run and every rank start alike. Takes a forward and backward
    pass for each of up to 8 batches of 8 rows, on the GPU where one process has one.

    Args:
        recipe: says the seed and the device.
        task: makes batches.
        tokenizer: the base model's.
        model: the base model; one without weights (a dry run, a rank that gets its own later) is passed over.
        config: the adapter's.
        examples: the encoded training rows.

    Raises:
        MeloraError: see `melora.preprocess_lora_ga`.
    """
    wanted = isinstance(config, MeloraConfig) and config.init_weights == "lora_ga"
    if not wanted or any(parameter.is_meta for parameter in model.parameters()):
        return
    rows = random.Random(recipe.seed).sample(range(len(examples)), min(BATCHES * ROWS, len(examples)))
    collate = task.collator(tokenizer)
    batches = [collate([examples[row] for row in rows[i : i + ROWS]]) for i in range(0, len(rows), ROWS)]
    moved = _may_move(recipe, model)
    try:
        if moved:
            model.to("cuda")
        preprocess_lora_ga(model, config, batches, device="cpu", seed=recipe.seed)
    finally:
        if moved:
            model.to("cpu")
    logger.info("the adapter starts from gradients of %d training rows", len(rows))


def _may_move(recipe: Recipe, model: Any) -> bool:
    """Whether a GPU is there for this process alone, and the model lies on the CPU and can be moved."""
    if not torch.cuda.is_available() or recipe.training.get("use_cpu") or world_size() > 1:
        return False
    quantized = getattr(model.config, "quantization_config", None) is not None
    return not quantized and all(parameter.device.type == "cpu" for parameter in model.parameters())
