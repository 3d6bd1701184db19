"""The settings that the committed studies speak for, as a config for a given model."""

import math
from dataclasses import replace
from typing import Any

from torch import nn

from .config import MeloraConfig
from .errors import MeloraError
from .layer import MeloraLayer
from .shapes import divisors
from .targets import targeted_modules, with_default_targets

# From results/glue-minilm (STS-B, CoLA, MRPC, SST-2 and RTE, MiniLM-L6, three seeds): of the MELoRAs measured the one
# with the best mean over the five. Against LoRA r=8, with half its parameters, three ties, a win and a loss; against
# LoRA r=4, with as many, four ties and a loss. The tables are in docs/scores.md; change both together. No permute:
# with two blocks it changed nothing clear (results/options-minilm, docs/options.md).
N, R, ALPHA = 2, 4, 16


def recommended(model: nn.Module, **changes: Any) -> MeloraConfig:
    """See MeloraConfig.recommended."""
    config = MeloraConfig(**{"r": R, "n": N, "lora_alpha": ALPHA, **changes})
    if "n" in changes:
        return config
    config = with_default_targets(model, config)
    targets = targeted_modules(model, config).values()
    sizes = {size for module in targets for size in _sizes(module)}
    if not sizes:
        raise MeloraError("recommended: no module of the model is a target; name some in target_modules")
    return replace(config, n=max(n for n in divisors(math.gcd(*sizes)) if n <= N))


def _sizes(module: nn.Module) -> tuple[int, int]:
    base = module.get_base_layer() if isinstance(module, MeloraLayer) else module
    return MeloraLayer.sizes_of(base)
