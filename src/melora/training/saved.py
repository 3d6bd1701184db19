"""What is stored beside the adapter's weights, so that its folder is enough to use it."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError

from ..adapter_files import WEIGHTS_FILE
from ..errors import MeloraError
from ..loading import load_adapter
from ..untrusted import check_auto_mapping
from .adalora import keep_chosen_ranks, ready_to_score
from .folder import read_json, write_json
from .recipe import Recipe
from .schema import one_line
from .source import ModelSource
from .tasks import Task, task_class

TASK = "melora_task.json"
ADAPTER_CONFIG = "adapter_config.json"
_VARIANTS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)


def save_adapter(
    model: PeftModel,
    folder: Path,
    tokenizer: Any,
    task: Task,
    recipe: Recipe,
    source: ModelSource,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write an adapter folder: weights, config, tokenizer and what the task learned from the labels.

    `state` is the model's `whole_state`; None where nothing is sharded.
    """
    keep_chosen_ranks(model)
    model.save_pretrained(str(folder), state_dict=state)
    tokenizer.save_pretrained(str(folder))
    config = read_json(folder / ADAPTER_CONFIG)
    # A folder is recorded whole; a package or hub id by its name, which holds on other machines too.
    config["base_model_name_or_path"] = source.location if source.kind == "folder" else source.name
    write_json(folder / ADAPTER_CONFIG, config)
    write_json(folder / TASK, {"task": task.name, **task.state(), **task.inputs(recipe.data)})


def load_saved(base_model: Any, folder: Path) -> PeftModel:
    """The base model with the adapter that a run saved, whatever its method.

    MELoRA's and plain LoRA's are checked tensor by tensor before the model is touched; others as they are loaded.

    Raises:
        MeloraError: the folder is damaged, or its adapter is not for this base model.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    if config.get("peft_type") == "MELORA" or (config.get("peft_type") == "LORA" and _is_plain(config)):
        return load_adapter(base_model, folder)
    check_auto_mapping(config.get("auto_mapping"), f"{folder}: ")
    if not (folder / WEIGHTS_FILE).is_file():
        raise MeloraError(f"{folder}: no {WEIGHTS_FILE} in it; the run folder is not complete, train again")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")
            if config.get("peft_type") == "ADALORA":  # its ranks are by weight, where PEFT looks for modules at first
                warnings.filterwarnings("ignore", "The following rank_pattern keys did not match", RuntimeWarning)
            return ready_to_score(PeftModel.from_pretrained(base_model, str(folder)))
    except (KeyError, RuntimeError, UserWarning, ValueError, SafetensorError) as error:
        raise MeloraError(f"{folder}: can't be loaded into {type(base_model).__name__}: {one_line(error)}") from None


def _is_plain(lora: dict[str, Any]) -> bool:
    """Whether a LoRA's config asks for none of the variants that have other tensors, or tensors of other shapes."""
    return not any(lora.get(key) for key in _VARIANTS)


def load_task(folder: Path) -> Task:
    """The task that an adapter folder was saved with.

    Raises:
        MeloraError: task.json is missing or damaged.
    """
    state = read_json(folder / TASK)
    return task_class(str(state.get("task"))).from_state(state)
