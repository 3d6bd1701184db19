"""What of a LoraConfig a MELoRA can take over, and what it can't: one list for configs and for imported adapters."""

from dataclasses import fields
from typing import Any

from peft import LoraConfig

from .errors import MeloraError
from .initial import is_init

# Fields that change nothing by themselves: the class, and which Megatron module megatron_config would be read by.
_WITHOUT_EFFECT = ("peft_type", "peft_version", "auto_mapping", "megatron_core")


def shared_fields(lora: LoraConfig, names: set[str]) -> dict[str, Any]:
    """The fields of `lora` that are among `names`, MeloraConfig's own, with init_lora_weights as init_weights.

    Raises:
        MeloraError: a field that MELoRA has no counterpart for is set: use_dora, layer_replication, an init such as
            "corda", and so on; every such field is named.
    """
    if not isinstance(lora, LoraConfig):
        raise MeloraError(f"a peft.LoraConfig is needed, got a {type(lora).__name__}: pass a LoraConfig")
    default = LoraConfig()
    unsupported = [
        f"{field.name}={getattr(lora, field.name)!r}"
        for field in fields(lora)
        if field.name not in names
        and field.name not in (*_WITHOUT_EFFECT, "init_lora_weights")
        and getattr(lora, field.name) != getattr(default, field.name)
    ]
    if not is_init(lora.init_lora_weights):
        unsupported.append(f"init_lora_weights={lora.init_lora_weights!r}")
    if unsupported:
        raise MeloraError(
            f"MELoRA has no {', no '.join(unsupported)}: take it out of the LoraConfig, or stay with LoRA"
        )
    taken = {
        field.name: getattr(lora, field.name)
        for field in fields(lora)
        if field.name in names and field.name not in _WITHOUT_EFFECT
    }
    return {**taken, "init_weights": lora.init_lora_weights}
