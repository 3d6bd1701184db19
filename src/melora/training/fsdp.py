"""Where accelerate's FSDP2 (1.15) falls short: on processes without accelerators, and on BERT and its like."""

import os
from typing import Any

import torch


def is_on_cpus() -> bool:
    """Whether `accelerate launch` was told to shard, where there is nothing but CPUs."""
    return is_sharded() and not torch.accelerator.is_available()


def is_sharded() -> bool:
    """Whether `accelerate launch` was told to shard."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def allow_cpus() -> None:
    """Let accelerate take a CPU for a device of its own in each process; for the rest of this process.

    So a sharded run can be rehearsed and tested on any machine. Accelerate shards only for the kinds of devices that it
    lists; the CPU is none of them, and an FSDP config is dropped in silence: every process would hold the whole model.
    PyTorch's fully_shard itself works on CPUs, over gloo.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    def prepare_backend(self: PartialState, *args: object, **kwargs: object) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU  # one device for each process, in accelerate's words

    PartialState._prepare_backend = prepare_backend
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"


def lacks_weights() -> bool:
    """Whether this rank's base model holds no values yet: with cpu_ram_efficient_loading one on a machine has them."""
    wanted = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")
    sharded = all(os.environ.get(name, "false").lower() in ("true", "1") for name in wanted)
    return sharded and int(os.environ.get("LOCAL_RANK", "0")) != 0


def give_storage(model: Any) -> None:
    """Put what is to be trained on the CPU where it is on the meta device; the main rank's values come with sharding.

    With cpu_ram_efficient_loading the other ranks have no weights yet, nor a new head. Accelerate finds the optimiser's
    parameters again by their address, and all on the meta device have the same: a rank would train one of them alone.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter.is_meta:
                setattr(module, name, torch.nn.Parameter(torch.empty_like(parameter, device="cpu")))


def name_layers(model: Any, plugin: Any) -> None:
    """Say which classes of the model become units of their own, unless accelerate's config does.

    The model's own list may hold a module around the input embedding (BertEmbeddings). Accelerate shards the embedding
    once more, and PyTorch fails on what is sharded already.

    Args:
        model: transformers' model, with its adapter.
        plugin: accelerate's FSDP plugin.
    """
    if plugin.transformer_cls_names_to_wrap:
        return
    embedding = model.get_input_embeddings()
    around = {type(module) for module in model.modules() if any(child is embedding for child in module.modules())}
    inside = {type(module).__name__ for module in model.modules() if type(module) not in around}
    plugin.transformer_cls_names_to_wrap = sorted(inside & set(model._no_split_modules or ()))
