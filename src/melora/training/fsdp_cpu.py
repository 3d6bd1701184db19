"""FSDP2 on processes without accelerators, so that a sharded run can be rehearsed and tested on any machine.

Accelerate (1.15) shards only for the kinds of devices that it lists. The CPU is none of them, and an FSDP config is
dropped in silence: every process would hold the whole model. PyTorch's fully_shard itself works on CPUs, over gloo.
"""

import os

import torch


def is_wanted() -> bool:
    """Whether `accelerate launch` was told to shard, where there is nothing but CPUs."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and not torch.accelerator.is_available()


def allow() -> None:
    """Let accelerate take a CPU for a device of its own in each process; for the rest of this process."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    def prepare_backend(self: PartialState, *args: object, **kwargs: object) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU  # one device for each process, in accelerate's words

    PartialState._prepare_backend = prepare_backend
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
