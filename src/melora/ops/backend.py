"""Which back end the layers use: batched products, or the Triton kernels where they were asked for and can run."""

import os
from types import ModuleType

import torch

from ..errors import MeloraError
from . import batched

VARIABLE = "MELORA_BACKEND"
BACKENDS = ("batched", "triton")

_chosen: ModuleType | None = None  # until it is first asked for


def use_backend(name: str) -> None:
    """Choose the back end of every layer of this process: "batched" or "triton" (docs/gpu.md).

    Without a call the environment variable MELORA_BACKEND decides, else it is "batched": no one has measured the
    kernels on a GPU yet. What they can't run (CPU tensors, fp64, DTensor, minis of a rank above 128, ranks
    mixed across blocks) goes to batched products.

    Raises:
        MeloraError: the name is not known, or triton can't be imported.
    """
    global _chosen
    _chosen = _module(name)


def chosen_backend() -> ModuleType:
    """The back end in use, `melora.ops.batched` or `melora.ops.triton`.

    Raises:
        MeloraError: MELORA_BACKEND names none, or one that can't be imported.
    """
    global _chosen
    if _chosen is None:
        _chosen = _module(os.environ.get(VARIABLE, "batched"))
    return _chosen


def _module(name: str) -> ModuleType:
    if name not in BACKENDS:
        raise MeloraError(f"{VARIABLE}={name} is not known: choose from {', '.join(BACKENDS)}")
    if name == "batched":
        return batched
    try:
        from . import triton as kernels
    except ImportError as error:
        raise MeloraError(
            f"{VARIABLE}=triton, but triton can't be imported ({error}): pip install triton, or {VARIABLE}=batched"
        ) from error
    return kernels


def block_lora(
    x: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    *,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    core: torch.Tensor | None = None,
    shuffle: bool = False,
    dropout: float = 0.0,
) -> torch.Tensor:
    """`batched.block_lora`, by the back end in use."""
    if core is not None or shuffle:
        return batched.block_lora(
            x, A, B, scaling, weight=weight, bias=bias, core=core, shuffle=shuffle, dropout=dropout
        )
    y: torch.Tensor = _able(x, A).block_lora(x, A, B, scaling, weight=weight, bias=bias, dropout=dropout)
    return y


def add_block_lora(
    out: torch.Tensor,
    x: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    *,
    core: torch.Tensor | None = None,
    shuffle: bool = False,
    dropout: float = 0.0,
    in_place: bool = False,
) -> torch.Tensor:
    """`batched.add_block_lora`, by the back end in use."""
    if core is not None or shuffle:
        return batched.add_block_lora(
            out, x, A, B, scaling, core=core, shuffle=shuffle, dropout=dropout, in_place=in_place
        )
    y: torch.Tensor = _able(x, A).add_block_lora(out, x, A, B, scaling, dropout=dropout, in_place=in_place)
    return y


def _able(x: torch.Tensor, A: torch.Tensor) -> ModuleType:
    module = chosen_backend()
    return module if module is batched or module.can_run(x, A) else batched
