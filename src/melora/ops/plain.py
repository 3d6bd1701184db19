"""The operation in plain PyTorch, out of place: what autograd can differentiate again."""

import torch
import torch.nn.functional as F

from .keep_bits import full_mask, keep_scale
from .mixing import mix


def minis(t: torch.Tensor, n: int) -> torch.Tensor:
    """(..., d) -> (n, T, d / n), T the product of the leading sizes: a view wherever t's strides allow one."""
    return t.reshape(-1, n, t.shape[-1] // n).transpose(0, 1)


def plain_block_lora(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None = None,
    core: torch.Tensor | None = None,
    shuffle: bool = False,
) -> torch.Tensor:
    """base + scaling * concat_i(B_i A_i (mask x)_i), where base is W x + b, or nothing.

    Args:
        mask: what to multiply x by before A, broadcast to x.
        The others: as in `block_lora`.
    """
    u = torch.bmm(minis(x if mask is None else x * mask, A.shape[0]), A.transpose(1, 2))
    adapter = torch.bmm(mix(u, core, shuffle), B.transpose(1, 2)).transpose(0, 1).reshape(*x.shape[:-1], -1) * scaling
    return adapter if weight is None else F.linear(x, weight, bias) + adapter


def differentiable_gradients(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    A: torch.Tensor,
    B: torch.Tensor,
    core: torch.Tensor | None,
    bits: torch.Tensor | None,
    scaling: float,
    dropout: float,
    shuffle: bool,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of x, A, B and core with their history, for a second derivative; u is a plain value, so not used."""
    mask = None
    if bits is not None:
        mask = full_mask(x, bits)
        scaling *= keep_scale(dropout)
    # Aliases, for A may come from x: only the direct dependence counts here.
    given = (x, A, B) if core is None else (x, A, B, core)
    inputs = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in given]
    cores = inputs[3] if len(inputs) > 3 else None
    y = plain_block_lora(inputs[0], weight, None, inputs[1], inputs[2], scaling, mask, cores, shuffle)
    grads = torch.autograd.grad(y, inputs, grad, create_graph=True)
    return grads if core is not None else (*grads, None)
