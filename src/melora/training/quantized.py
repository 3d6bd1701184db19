"""Base models of 4 or 8 bits a weight (QLoRA), made by bitsandbytes while they load."""

import importlib.util
from typing import Any

import torch

from ..errors import MeloraError
from .recipe import ModelSpec

# A head may be new, and is trained then: it stays as it is. So does what gives the logits.
_LEFT_ALONE = ["classifier", "score", "pre_classifier", "lm_head"]
_QUANTISED = ("Params4bit", "Int8Params")


def quantization_config(spec: ModelSpec) -> Any:
    """What from_pretrained takes as quantization_config; None without model.quantization.

    4bit is QLoRA's: NF4, the scales quantised once more, products in model.dtype.

    Raises:
        MeloraError: bitsandbytes is not installed.
    """
    if spec.quantization is None:
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MeloraError(
            f"model.quantization: {spec.quantization} needs bitsandbytes, which is not installed; run "
            "`pip install bitsandbytes`, or leave the key out"
        )
    from transformers import BitsAndBytesConfig

    if spec.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_LEFT_ALONE)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, spec.dtype),
        llm_int8_skip_modules=_LEFT_ALONE,
    )


def prepare_quantized(model: Any) -> None:
    """Freeze a quantised model and hold what is not quantised (norms, embeddings, head) in fp32, as QLoRA does."""
    from peft import prepare_model_for_kbit_training

    # Checkpointing is the trainer's affair, which reads the recipe.
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def number_of_weights(parameter: torch.Tensor) -> int:
    """How many weights a parameter holds; 4 bits make two of a byte, once they are packed."""
    packed = type(parameter).__name__ == "Params4bit" and getattr(parameter, "quant_state", None) is not None
    return parameter.numel() * parameter.element_size() * 2 if packed else parameter.numel()


def quantized_names(model: Any) -> set[str]:
    """The names, in a state dict, of quantised weights and of what their modules need to read them.

    Packing and scales may differ from device to device and from version to version.
    """
    names: set[str] = set()
    for path, module in model.named_modules():
        if type(getattr(module, "weight", None)).__name__ in _QUANTISED:
            names |= {f"{path}.{key}" for key in module.state_dict() if key != "bias"}
    return names
