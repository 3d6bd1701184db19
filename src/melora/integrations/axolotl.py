"""MELoRA as an adapter of axolotl (0.19). In the YAML:

    plugins: [melora.integrations.axolotl.MeloraPlugin]
    adapter: melora
    melora_n: 8
    lora_r: 1              # rank of one mini
    lora_alpha: 16
    lora_target_linear: true

All other lora_ and peft_ keys mean what they mean for LoRA; those that MELoRA has no counterpart for are errors.
"""

from typing import Any

from axolotl.integrations.base import AdapterCapabilities, BasePlugin
from peft import PeftConfig, PeftModel, get_peft_model
from pydantic import BaseModel, Field

from ..config import MeloraConfig
from ..errors import MeloraError

# axolotl's key -> MeloraConfig's field
_FIELDS = {
    "melora_n": "n",
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "lora_exclude_modules": "exclude_modules",
    "lora_fan_in_fan_out": "fan_in_fan_out",
    "lora_modules_to_save": "modules_to_save",
    "lora_rank_pattern": "rank_pattern",
    "lora_alpha_pattern": "alpha_pattern",
    "peft_use_rslora": "use_rslora",
    "peft_layers_to_transform": "layers_to_transform",
    "peft_layers_pattern": "layers_pattern",
    "peft_trainable_token_indices": "trainable_token_indices",
}
_UNSUPPORTED = (
    "peft_use_dora",
    "peft_init_lora_weights",
    "peft_layer_replication",
    "peft_ensure_weight_tying",
    "relora",
)
_TASKS = {"SequenceClassification": "SEQ_CLS", "TokenClassification": "TOKEN_CLS"}


class MeloraArgs(BaseModel):
    """The keys that the plugin adds to axolotl's YAML."""

    melora_n: int = Field(default=8, description="number of minis; must divide both sizes of every target")


class MeloraPlugin(BasePlugin):
    """axolotl's plugin: offers `adapter: melora` and builds it."""

    def get_input_args(self) -> str:
        return "melora.integrations.axolotl.MeloraArgs"

    def get_adapter_capabilities(self) -> list[AdapterCapabilities]:
        return [AdapterCapabilities(name="melora", lora_like=True)]

    def load_adapter(
        self, model: Any, cfg: Any, inference: bool = False, config_only: bool = False
    ) -> tuple[PeftModel | None, PeftConfig] | None:
        """The adapted model and its config; None where the YAML asks for another adapter.

        Raises:
            MeloraError: a key asks for what MELoRA does not have, or the config does not fit the model.
        """
        if cfg.adapter != "melora":
            return None
        config = melora_config(model, cfg)
        if config_only:
            return None, config
        cast = (
            {}
            if cfg.peft_autocast_adapter_dtype is None
            else {"autocast_adapter_dtype": cfg.peft_autocast_adapter_dtype}
        )
        if cfg.lora_model_dir:
            return PeftModel.from_pretrained(model, cfg.lora_model_dir, is_trainable=not inference, **cast), config
        return get_peft_model(model, config, **cast), config


def melora_config(model: Any, cfg: Any) -> MeloraConfig:
    """The MeloraConfig that axolotl's keys ask for.

    Raises:
        MeloraError: a key asks for what MELoRA does not have.
    """
    unsupported = [key for key in _UNSUPPORTED if cfg.get(key)]
    if unsupported:
        raise MeloraError(f"adapter: melora has no {', '.join(unsupported)}: take it out, or use adapter: lora")
    fields = {field: cfg.get(key) for key, field in _FIELDS.items() if cfg.get(key) not in (None, [], {})}
    if cfg.lora_target_linear:
        fields["target_modules"] = "all-linear"
    task = next((task for end, task in _TASKS.items() if end in type(model).__name__), "CAUSAL_LM")
    return MeloraConfig(**{"task_type": task, **fields})
