"""Fused kernels for GPUs: one pass over x and y forward, one over the gradient and x backward. Needs Triton.

Right in Triton's interpreter on the CPU; no GPU was at hand, so nothing is known of their speed (docs/gpu.md).
"""

import torch

from .autograd import add_block_lora, block_lora
from .kernels import INTERPRETED

__all__ = ["HIGHEST_RANK", "add_block_lora", "block_lora", "can_run"]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HIGHEST_RANK = 128
"""Of one mini: a program holds (tokens of a tile) * r numbers in registers."""


def can_run(x: torch.Tensor, A: torch.Tensor) -> bool:
    """Whether the kernels take these: plain tensors on a GPU, up to 32 bits wide, r up to HIGHEST_RANK."""
    return (
        (x.is_cuda or (INTERPRETED and x.device.type == "cpu"))
        and x.dtype in DTYPES
        and A.shape[1] <= HIGHEST_RANK
        and type(x) in (torch.Tensor, torch.nn.Parameter)
        and type(A) in (torch.Tensor, torch.nn.Parameter)
    )
