"""What the adapter of a run starts from, where that is the gradient of the training data or lies with another rank."""

import logging
from typing import TYPE_CHECKING

from peft import PeftConfig, PeftModel

from ..calibration import calibrate
from ..config import MeloraConfig
from ..errors import MeloraError
from ..lora_ga import preprocess_lora_ga
from .fsdp import is_sharded, lacks_weights
from .gradient_pass import gradient_pass

if TYPE_CHECKING:
    from .prepare import Loaded

logger = logging.getLogger(__name__)


def prepare_start(loaded: "Loaded", config: PeftConfig) -> PeftConfig:
    """Do what has to come before an adapter is made, and return the config to make it by.

    With init_weights="lora_ga" gradients are taken of adapter_search.batches training batches, drawn by the recipe's
    seed: a resumed run and every rank start alike. A rank that has no weights yet takes none and reads none off; its
    share of A and B comes with sharding.

    Args:
        loaded: the run, with weights.
        config: the adapter's.

    Raises:
        MeloraError: see `melora.preprocess_lora_ga`.
    """
    if not isinstance(config, MeloraConfig):
        return config
    if lacks_weights():
        return config.awaiting_tensors()
    if config.init_weights == "lora_ga":
        with gradient_pass(loaded) as batches:
            logger.info("the adapter starts from the gradient of %d batches", len(batches))
            preprocess_lora_ga(loaded.base.model, config, batches, device="cpu", seed=loaded.recipe.seed)
    return config


def order_channels(loaded: "Loaded", model: PeftModel, config: PeftConfig) -> None:
    """Calibrate an adapter with permute="correlation" on the same batches, as prepare_start's gradients are.

    Args:
        loaded: the run, whose base model is in `model`.
        model: the adapted model.
        config: the adapter's.

    Raises:
        MeloraError: see `melora.calibrate`; or the model is sharded, where no rank could see whole layers.
    """
    if not isinstance(config, MeloraConfig) or config.permute != "correlation":
        return
    if is_sharded():
        raise MeloraError(
            "adapter.permute: correlation looks at whole layers, which FSDP shards: train on one device or by DDP, or "
            "set permute=strided"
        )
    with gradient_pass(loaded) as batches:
        count = calibrate(model, batches)
    logger.info("the channels of %d modules are ordered by correlation on %d batches", count, len(batches))
