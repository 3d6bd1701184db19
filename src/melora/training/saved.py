"""What is stored beside the adapter's weights, so that its folder is enough to use it."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from .folder import read_json, write_json
from .recipe import Recipe
from .source import ModelSource
from .tasks import Task, task_class

TASK = "melora_task.json"
ADAPTER_CONFIG = "adapter_config.json"


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
    model.save_pretrained(str(folder), state_dict=state)
    tokenizer.save_pretrained(str(folder))
    config = read_json(folder / ADAPTER_CONFIG)
    # A folder is recorded whole; a package or hub id by its name, which holds on other machines too.
    config["base_model_name_or_path"] = source.location if source.kind == "folder" else source.name
    write_json(folder / ADAPTER_CONFIG, config)
    write_json(folder / TASK, {"task": task.name, **task.state(), **task.inputs(recipe.data)})


def load_task(folder: Path) -> Task:
    """The task that an adapter folder was saved with.

    Raises:
        MeloraError: task.json is missing or damaged.
    """
    state = read_json(folder / TASK)
    return task_class(str(state.get("task"))).from_state(state)
