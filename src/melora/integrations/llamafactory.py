"""MELoRA as a PEFT plugin of LLaMA-Factory v1 (0.9.5). In the YAML:

    peft_config: {name: melora, r: 1, n: 8, lora_alpha: 16, target_modules: all}

`name` and the keys that LLaMA-Factory itself reads apart, every key is a field of MeloraConfig. LLaMA-Factory looks for
no plugins, so start it through this module, alone or under torchrun:

    python -m melora.integrations.llamafactory sft train.yaml
"""

from dataclasses import fields
from typing import Any

from llamafactory.v1.plugins.model_plugins.peft import PeftPlugin, load_adapter
from peft import get_peft_model

from ..config import MeloraConfig
from ..errors import MeloraError

# What LLaMA-Factory reads itself, at other places.
_OTHERS = {
    "name",
    "adapter_name_or_path",
    "export_dir",
    "export_size",
    "export_hub_model_id",
    "infer_dtype",
    "export_legacy_format",
}
_TASKS = {"ForTokenClassification": "TOKEN_CLS", "ForSequenceClassification": "SEQ_CLS"}


@PeftPlugin("melora").register()
def get_melora_model(model: Any, config: dict[str, Any], is_train: bool = False) -> Any:
    """LLaMA-Factory's call: the adapted model, new or from `adapter_name_or_path`.

    Raises:
        MeloraError: an unknown key, or a config that does not fit the model.
    """
    paths = config.get("adapter_name_or_path")
    if paths:
        return load_adapter(model, paths, is_train)
    values = {key: value for key, value in config.items() if key not in _OTHERS}
    unknown = sorted(values.keys() - {field.name for field in fields(MeloraConfig)})
    if unknown:
        raise MeloraError(f"peft_config: melora has no {', '.join(unknown)}: take it out; the keys are MeloraConfig's")
    if values.get("target_modules", "all") == "all":
        values["target_modules"] = "all-linear"
    task = next((task for end, task in _TASKS.items() if type(model).__name__.endswith(end)), "CAUSAL_LM")
    adapted = get_peft_model(model, MeloraConfig(**{"task_type": task, "inference_mode": not is_train, **values}))
    if is_train:
        adapted.print_trainable_parameters()
    return adapted


if __name__ == "__main__":
    from llamafactory.v1.launcher import main

    main()
