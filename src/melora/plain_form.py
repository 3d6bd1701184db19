"""A saved adapter without its start: a plain MELoRA of mini rank 2r, for whoever takes no other."""

import copy
import math

import torch
from peft import PeftModel

from .config import MeloraConfig
from .errors import MeloraError
from .factors import wide
from .file_modules import start_key
from .initial import START, has_start, joined


def plain_form(
    model: PeftModel, config: MeloraConfig, initial: str, state_dict: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """An adapter's tensors with the start joined into A and B (initial.py), for PEFT's conversion while saving.

    What `save_pretrained(folder, path_initial_model_for_weight_conversion=INITIAL)` is for with LoRA: there the plain
    form alone is right on the original base model. Every saved MELoRA is, so this is for readers that know init_weights
    True only. INITIAL is not read, since the start is in the model; PEFT writes its config there before it calls this,
    and that is undone.

    Args:
        model: the adapted model.
        config: PEFT's copy of the adapter's config, which has init_weights=True. PEFT (0.21) doubles r, lora_alpha and
            the values of rank_pattern and alpha_pattern in it after this; with use_rslora it multiplies lora_alpha by
            sqrt(2), as it must, but alpha_pattern by 2, which is made up for here.
        initial: INITIAL.
        state_dict: the adapter's tensors by their names in a file.

    Raises:
        MeloraError: the adapter has no start.
    """
    own = next((c for c in model.peft_config.values() if _without_init(c) == _without_init(config)), config)
    written = copy.copy(own)
    written.inference_mode = True  # as PEFT saves every adapter's
    base = type(model.get_base_model())
    mapping = {"base_model_class": base.__name__, "parent_library": base.__module__}  # as PEFT writes it
    written.save_pretrained(initial, auto_mapping_dict=None if own.task_type else mapping)
    if not has_start(own.init_weights):
        raise MeloraError(
            f"init_weights={own.init_weights!r} has no start to be joined into A and B, nothing is to convert: save "
            f"without path_initial_model_for_weight_conversion={initial!r}"
        )
    if config.use_rslora:
        config.alpha_pattern = {key: alpha / math.sqrt(2) for key, alpha in config.alpha_pattern.items()}
    plain = {key: value for key, value in state_dict.items() if not key.endswith(START)}
    for key in plain:
        if start_key(key) not in state_dict or not key.endswith("_A.weight"):
            continue
        other = key.replace("_A.", "_B.")
        tensors = (plain[key], plain[other], state_dict[start_key(key)], state_dict[start_key(other)])
        pair = joined(*map(wide, tensors))
        plain[key], plain[other] = (tensor.contiguous() for tensor in pair)
    return plain


def _without_init(config: MeloraConfig) -> dict[str, object]:
    return {key: value for key, value in config.to_dict().items() if key != "init_weights"}
