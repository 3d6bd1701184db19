"""The operation as operators of torch.library: what compilers and torch.export see of it.

They stay opaque there, with the same arithmetic as in eager mode. Traced through instead, inductor's code for it was
slower than eager mode in three of four cases (docs/performance.md). Eager mode itself takes the autograd.Function of
`batched`, which costs less to call.
"""

from typing import Any

import torch
from torch import Tensor

from . import products
from .keep_bits import word_count
from .plain import differentiable_gradients

# Forward calls draw a mask; without dropout they are as deterministic as the backward one.
_DRAWS = (torch.Tag.nondeterministic_seeded,)


@torch.library.custom_op("melora::block_lora", mutates_args=(), tags=_DRAWS)
def _block_lora(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float, dropout: float
) -> tuple[Tensor, Tensor, Tensor]:
    y, u, bits = products.forward(None, x, weight, bias, A, B, scaling, dropout)
    return y.contiguous(), u, x.new_empty(0, dtype=torch.int64) if bits is None else bits


@torch.library.custom_op("melora::add_block_lora", mutates_args=(), tags=_DRAWS)
def _add_block_lora(
    out: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float, dropout: float
) -> tuple[Tensor, Tensor, Tensor]:
    out = out.clone(memory_format=torch.contiguous_format)
    y, u, bits = products.forward(out, x, None, None, A, B, scaling, dropout)
    return y, u, x.new_empty(0, dtype=torch.int64) if bits is None else bits


@torch.library.custom_op("melora::block_lora_backward", mutates_args=())
def _block_lora_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    A: Tensor,
    B: Tensor,
    u: Tensor,
    bits: Tensor,
    scaling: float,
    dropout: float,
    need_x: bool,
    need_A: bool,
    need_B: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    kept = bits if dropout > 0.0 else None
    grads = products.backward(grad, x, weight, A, B, u, kept, scaling, dropout, need_x, need_A, need_B)
    grad_x, grad_A, grad_B = (grad.new_empty(0) if value is None else value for value in grads)
    return grad_x.contiguous(), grad_A.contiguous(), grad_B.contiguous()


def _fake_forward(x: Tensor, A: Tensor, B: Tensor, dropout: float) -> tuple[Tensor, Tensor, Tensor]:
    n, r, _ = A.shape
    tokens = x.numel() // x.shape[-1]
    words = word_count(x.numel()) if dropout > 0.0 else 0
    return (
        x.new_empty((*x.shape[:-1], n * B.shape[1])),
        x.new_empty((n, tokens, r)),
        x.new_empty(words, dtype=torch.int64),
    )


@_block_lora.register_fake
def _(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float, dropout: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_forward(x, A, B, dropout)


@_add_block_lora.register_fake
def _(out: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float, dropout: float) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_forward(x, A, B, dropout)


@_block_lora_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    A: Tensor,
    B: Tensor,
    u: Tensor,
    bits: Tensor,
    scaling: float,
    dropout: float,
    need_x: bool,
    need_A: bool,
    need_B: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    wanted = ((x, need_x), (A, need_A), (B, need_B))
    grad_x, grad_A, grad_B = (grad.new_empty(like.shape if need else 0) for like, need in wanted)
    return grad_x, grad_A, grad_B


def _gradients(ctx: Any, grad: Tensor, needs: tuple[bool, bool, bool]) -> tuple[Tensor | None, ...]:
    """The gradients of x, A and B."""
    x, weight, A, B, u, bits = ctx.saved_tensors
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        kept = bits if ctx.dropout > 0.0 else None
        return differentiable_gradients(grad, x, weight, A, B, kept, ctx.scaling, ctx.dropout)
    grads = _block_lora_backward(grad, x, weight, A, B, u, bits, ctx.scaling, ctx.dropout, *needs)
    return tuple(value if need else None for value, need in zip(grads, needs, strict=True))


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, _, A, B, ctx.scaling, ctx.dropout = inputs
    ctx.save_for_backward(x, weight, A, B, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _set_up_add(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, x, A, B, ctx.scaling, ctx.dropout = inputs
    ctx.save_for_backward(x, None, A, B, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    need_x, need_weight, need_bias, need_A, need_B = ctx.needs_input_grad[:5]
    grad_x, grad_A, grad_B = _gradients(ctx, grad, (need_x, need_A, need_B))
    rows, x = grad.reshape(-1, grad.shape[-1]), ctx.saved_tensors[0]
    grad_weight = rows.T @ x.reshape(-1, x.shape[-1]) if need_weight else None
    return grad_x, grad_weight, rows.sum(0) if need_bias else None, grad_A, grad_B, None, None


def _differentiate_add(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    need_out, *needs = ctx.needs_input_grad[:4]
    grad_x, grad_A, grad_B = _gradients(ctx, grad, (needs[0], needs[1], needs[2]))
    return grad if need_out else None, grad_x, grad_A, grad_B, None, None


_block_lora.register_autograd(_differentiate, setup_context=_set_up)
_add_block_lora.register_autograd(_differentiate_add, setup_context=_set_up_add)


def block_lora(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float, dropout: float
) -> Tensor:
    """`batched.block_lora` as one node of a graph."""
    y: Tensor = _block_lora(x, weight, bias, A, B, scaling, dropout)[0]
    return y


def add_block_lora(out: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float, dropout: float) -> Tensor:
    """`batched.add_block_lora` as one node of a graph, out of place."""
    y: Tensor = _add_block_lora(out, x, A, B, scaling, dropout)[0]
    return y
