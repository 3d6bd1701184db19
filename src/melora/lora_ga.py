"""The gradients that init_weights="lora_ga" starts from: measured before the adapter is made, or given."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .config import MeloraConfig
from .errors import MeloraError
from .gradients import weight_gradients
from .initial import keep_gradient
from .layer import MeloraLayer
from .permutation import mini_blocks
from .targets import check_targets, module_settings, targeted_modules, with_default_targets


def preprocess_lora_ga(
    model: nn.Module,
    config: MeloraConfig,
    batches: Iterable[Any] | None = None,
    *,
    gradients: Mapping[str, torch.Tensor] | None = None,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Measure the gradient of every weight that `config` adapts, and keep it until the adapter is made.

    Comes before get_peft_model with init_weights="lora_ga", as PEFT's preprocess_loraga does for LoRA:

        preprocess_lora_ga(model, config, batches)
        peft_model = get_peft_model(model, config)

    The next adapter that is put into `model`, in whatever way, uses the gradients up. Loading a saved adapter needs
    none. Nothing in the model is changed (see `weight_gradients` for what the pass costs and how it is seeded).

    Args:
        model: the base model.
        config: of the adapter, with init_weights="lora_ga".
        batches: what the model takes as keywords, labels included; 4 to 8 batches of a training step's size are usual.
        gradients: in place of batches, {module: gradient of its weight, (d_out, d_in) whatever the layer's layout},
            such as this function has returned.
        loss: (model, batch) -> a scalar; by default model(**batch).loss.
        device: where gradients are kept; by default where they are made. One (d_out, d_in) matrix for each module.
        seed: of torch's random numbers during the pass.

    Returns:
        {module: gradient}: for another adapter, or to be stored with torch.save or safetensors.

    Raises:
        MeloraError: the config is not for this or does not fit the model, neither or both of batches and gradients are
            given, or a gradient is missing, mis-shaped, not finite or zero on a mini's block.
    """
    if config.init_weights != "lora_ga":
        raise MeloraError(
            f"preprocess_lora_ga: the config has init_weights={config.init_weights!r}, which needs no gradients; set "
            "it to 'lora_ga'"
        )
    if (batches is None) == (gradients is None):
        raise MeloraError("preprocess_lora_ga: give either batches or gradients")
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    config = with_default_targets(inner, config)
    check_targets(inner, config, sources=False)
    modules = targeted_modules(inner, config)
    if gradients is None:
        assert batches is not None
        gradients = weight_gradients(model, modules, batches, loss=loss, device=device, seed=seed)
    bases = {name: m.get_base_layer() if isinstance(m, BaseTunerLayer) else m for name, m in modules.items()}
    for name, base in bases.items():
        _check(name, base, gradients.get(name), config)
    for name, base in bases.items():
        keep_gradient(base, gradients[name])
    return {name: gradients[name] for name in modules}


def _check(name: str, base: nn.Module, gradient: torch.Tensor | None, config: MeloraConfig) -> None:
    d_in, d_out = MeloraLayer.sizes_of(base)
    if gradient is None:
        raise MeloraError(f"preprocess_lora_ga: gradients has none for {name}; give one of shape [{d_out}, {d_in}]")
    if gradient.shape != (d_out, d_in):
        raise MeloraError(
            f"{name}: its gradient has shape {list(gradient.shape)} and must have [{d_out}, {d_in}], (d_out, d_in) "
            "whatever the layer's own layout: transpose it, or measure it by batches"
        )
    if not torch.isfinite(gradient).all():
        raise MeloraError(f"{name}: its gradient holds NaN or infinity; measure it again, in bfloat16 or float32")
    _, n, _ = module_settings(config, name)
    zero = (mini_blocks(gradient, n, config.permute) == 0).flatten(1).all(1)
    if zero.any():
        raise MeloraError(
            f"{name}: the gradient is 0 on the block of mini {int(zero.nonzero()[0])}, so it has no directions to "
            "start from; give more batches, leave the module out by exclude_modules, or use init_weights='pissa'"
        )
