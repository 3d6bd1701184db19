"""The operation with its gradients: block_lora and add_block_lora, as one autograd.Function."""

from typing import Any

import torch

from . import products, registered
from .block_diagonal import FEWEST_ROWS
from .plain import differentiable_gradients


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
    """y = W x + b + scaling * concat_i(B_i A_i drop(x)_i); the arguments of `block_lora_reference`, and dropout.

    All tensors share one device and one floating dtype. Differentiable any number of times in all of them. What
    autograd keeps is x (the base layer of a trained network keeps it anyway), T * n * r numbers, and with dropout one
    bit an element of x.

    Args:
        x: (..., d_in), of any strides and 1 or more dimensions.
        A: (n, r, d_in / n).
        B: (n, d_out / n, r).
        scaling: the factor on the adapter's output.
        weight: (d_out, d_in), or None for the adapter's output alone.
        bias: (d_out,) or None.
        core: (r, n, n) or None; block (i, j) of the update is then B_i diag(core[:, i, j]) A_j.
        shuffle: exchange ranks between blocks, as `mixing.mix` says; without a core.
        dropout: probability of zeroing an element of the adapter's input; 0 outside training.

    Returns:
        (..., d_out)
    """
    if torch.compiler.is_compiling():
        return registered.block_lora(x, weight, bias, A, B, scaling, dropout, core, shuffle)
    if torch.is_grad_enabled():
        y: torch.Tensor = _BlockLora.apply(None, False, x, weight, bias, A, B, core, scaling, dropout, shuffle)
        return y
    if dropout == 0.0:
        tokens = x.numel() // x.shape[-1]
        # So few that no blocks would be merged. 16-bit products of strided rows, which several tokens are, have no fast
        # kernel on the CPU.
        if tokens == 1 or (1 < tokens < FEWEST_ROWS and x.element_size() > 2):
            return products.few_tokens(x, weight, bias, A, B, scaling, core, shuffle)
    return products.forward(None, x, weight, bias, A, B, scaling, dropout, core, shuffle)[0]


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
    """out + scaling * concat_i(B_i A_i drop(x)_i): for an output `out` of a base that computes by itself.

    Args:
        out: (..., d_out), in x's dtype.
        in_place: `out` may be overwritten, and is, where it is contiguous and no view.
        The others: as in `block_lora`.

    Returns:
        (..., d_out); the one tensor of that size that is made, if any.
    """
    if torch.compiler.is_compiling():
        return registered.add_block_lora(out, x, A, B, scaling, dropout, core, shuffle)
    in_place = in_place and out.is_contiguous() and not out._is_view()
    if torch.is_grad_enabled():
        y: torch.Tensor = _BlockLora.apply(out, in_place, x, None, None, A, B, core, scaling, dropout, shuffle)
        return y
    if not in_place:
        out = out.clone(memory_format=torch.contiguous_format)
    return products.forward(out, x, None, None, A, B, scaling, dropout, core, shuffle)[0]


class _BlockLora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        out: torch.Tensor | None,
        in_place: bool,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        A: torch.Tensor,
        B: torch.Tensor,
        core: torch.Tensor | None,
        scaling: float,
        dropout: float,
        shuffle: bool,
    ) -> torch.Tensor:
        if in_place:
            ctx.mark_dirty(out)
        elif out is not None:
            out = out.clone(memory_format=torch.contiguous_format)
        y, u, bits = products.forward(out, x, weight, bias, A, B, scaling, dropout, core, shuffle)
        ctx.save_for_backward(x, weight, A, B, core, u, bits)
        ctx.scaling = scaling
        ctx.dropout = dropout
        ctx.shuffle = shuffle
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, A, B, core, u, bits = ctx.saved_tensors
        need_out, _, need_x, need_weight, need_bias, *needs = ctx.needs_input_grad[:8]
        grads: tuple[torch.Tensor | None, ...]
        if torch.is_grad_enabled():
            grads = differentiable_gradients(grad, x, weight, A, B, core, bits, ctx.scaling, ctx.dropout, ctx.shuffle)
        else:
            need_A, need_B, need_core = needs
            sizes = (ctx.scaling, ctx.dropout, need_x, need_A, need_B)
            grads = products.backward(grad, x, weight, A, B, u, bits, *sizes, core, ctx.shuffle, need_core)
        grad_weight = grad.reshape(-1, grad.shape[-1]).T @ x.reshape(-1, x.shape[-1]) if need_weight else None
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if need_bias else None
        grad_x, *grad_factors = grads
        return grad if need_out else None, None, grad_x, grad_weight, grad_bias, *grad_factors, None, None, None
