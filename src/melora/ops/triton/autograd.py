"""The kernels as operators of torch.library with gradients, and the functions that call them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch.library import register_autograd, triton_op

from .launch import backward, forward, keep_scale, kept_mask

# triton_op lets torch.compile trace into these, so that it sees the kernels and the base's product themselves.
_forward = triton_op("melora::triton_block_lora", forward, mutates_args=())
_backward = triton_op("melora::triton_block_lora_backward", backward, mutates_args=())


def block_lora(
    x: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    *,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """`batched.block_lora` by the kernels: the same arguments and result, for tensors that `can_run` accepts.

    Dropout keeps nothing but a seed, which is drawn from the default generator of x's device; its mask is another one
    than batched products draw. Second derivatives are computed in plain PyTorch.
    """
    y: torch.Tensor = _forward(None, x, weight, bias, A, B, _seed(x, dropout), scaling, dropout)[0]
    return y


def add_block_lora(
    out: torch.Tensor,
    x: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    *,
    dropout: float = 0.0,
    in_place: bool = False,
) -> torch.Tensor:
    """`batched.add_block_lora` by the kernels. `out` is never overwritten: operators with gradients can't do that."""
    del in_place
    y: torch.Tensor = _forward(out, x, None, None, A, B, _seed(x, dropout), scaling, dropout)[0]
    return y


def _seed(x: torch.Tensor, dropout: float) -> torch.Tensor | None:
    # On the device: nothing waits, and a CUDA graph draws anew each time it runs.
    return torch.randint(2**62, (1,), device=x.device) if dropout > 0.0 else None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, x, weight, _, A, B, seed, ctx.scaling, ctx.dropout = inputs
    ctx.save_for_backward(x, weight, A, B, seed, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, grad: torch.Tensor, _grad_u: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    x, weight, A, B, seed, u = ctx.saved_tensors
    need_out, need_x, need_weight, need_bias, need_A, need_B = ctx.needs_input_grad[:6]
    grad_x = grad_A = grad_B = None
    if torch.is_grad_enabled():
        grad_x, grad_A, grad_B = _differentiable(grad, x, weight, A, B, seed, ctx.scaling, ctx.dropout)
    elif need_x or need_A or need_B:
        grad_x, grad_A, grad_B = _backward(
            grad, x, weight, A, B, u, seed, ctx.scaling, ctx.dropout, need_x, need_A, need_B
        )
    rows = grad.reshape(-1, grad.shape[-1])
    return (
        grad if need_out else None,
        grad_x if need_x else None,
        rows.T @ x.reshape(-1, x.shape[-1]) if need_weight else None,
        rows.sum(0) if need_bias else None,
        grad_A if need_A else None,
        grad_B if need_B else None,
        None,
        None,
        None,
    )


def _differentiable(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    A: torch.Tensor,
    B: torch.Tensor,
    seed: torch.Tensor | None,
    scaling: float,
    dropout: float,
) -> tuple[torch.Tensor, ...]:
    """The gradients of x, A and B with their own history, under the same mask: what a second derivative needs."""
    mask = None
    if seed is not None:
        mask = kept_mask(x, A.shape[0], seed, dropout).to(x.dtype) * keep_scale(dropout)
    # Aliases, for A may come from x: only the direct dependence counts here.
    x, A, B = (t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in (x, A, B))
    rows = (x if mask is None else x * mask).reshape(-1, A.shape[0], A.shape[2])
    y = scaling * torch.einsum("tni,nri,nor->tno", rows, A, B).reshape(grad.shape)
    if weight is not None:
        y = y + F.linear(x, weight)
    return torch.autograd.grad(y, (x, A, B), grad, create_graph=True)


register_autograd("melora::triton_block_lora", _gradients, setup_context=_setup_context)
