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
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scaling: float,
    dropout: float,
    core: Tensor | None,
    shuffle: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y, u, bits = products.forward(None, x, weight, bias, A, B, scaling, dropout, core, shuffle)
    return y.contiguous(), u, x.new_empty(0, dtype=torch.int64) if bits is None else bits


@torch.library.custom_op("melora::add_block_lora", mutates_args=(), tags=_DRAWS)
def _add_block_lora(
    out: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float,
    dropout: float,
    core: Tensor | None,
    shuffle: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    out = out.clone(memory_format=torch.contiguous_format)
    y, u, bits = products.forward(out, x, None, None, A, B, scaling, dropout, core, shuffle)
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
    core: Tensor | None,
    shuffle: bool,
    need_core: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kept = bits if dropout > 0.0 else None
    sizes = (scaling, dropout, need_x, need_A, need_B)
    grads = products.backward(grad, x, weight, A, B, u, kept, *sizes, core, shuffle, need_core)
    grad_x, grad_A, grad_B, grad_core = (grad.new_empty(0) if value is None else value.contiguous() for value in grads)
    return grad_x, grad_A, grad_B, grad_core


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
def _(x: Tensor, _weight: Any, _bias: Any, A: Tensor, B: Tensor, _scaling: float, dropout: float, *_: Any) -> Any:
    return _fake_forward(x, A, B, dropout)


@_add_block_lora.register_fake
def _(_out: Tensor, x: Tensor, A: Tensor, B: Tensor, _scaling: float, dropout: float, *_: Any) -> Any:
    return _fake_forward(x, A, B, dropout)


@_block_lora_backward.register_fake
def _(grad: Tensor, x: Tensor, _weight: Any, A: Tensor, B: Tensor, *others: Any) -> Any:
    need_x, need_A, need_B, core, _, need_core = others[4:]  # after u, bits, scaling, dropout
    wanted = ((x, need_x), (A, need_A), (B, need_B), (core, need_core))
    return tuple(grad.new_empty(like.shape if need else 0) for like, need in wanted)


def _gradients(ctx: Any, grad: Tensor, needs: tuple[bool, bool, bool, bool]) -> tuple[Tensor | None, ...]:
    """The gradients of x, A, B and core."""
    x, weight, A, B, core, u, bits = ctx.saved_tensors
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        kept = bits if ctx.dropout > 0.0 else None
        return differentiable_gradients(grad, x, weight, A, B, core, kept, ctx.scaling, ctx.dropout, ctx.shuffle)
    need_x, need_A, need_B, need_core = needs
    sizes = (ctx.scaling, ctx.dropout, need_x, need_A, need_B)
    grads = _block_lora_backward(grad, x, weight, A, B, u, bits, *sizes, core, ctx.shuffle, need_core)
    return tuple(value if need else None for value, need in zip(grads, needs, strict=True))


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, _, A, B, ctx.scaling, ctx.dropout, core, ctx.shuffle = inputs
    ctx.save_for_backward(x, weight, A, B, core, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _set_up_add(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, x, A, B, ctx.scaling, ctx.dropout, core, ctx.shuffle = inputs
    ctx.save_for_backward(x, None, A, B, core, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    need_x, need_weight, need_bias, need_A, need_B, _, _, need_core, _ = ctx.needs_input_grad
    grad_x, grad_A, grad_B, grad_core = _gradients(ctx, grad, (need_x, need_A, need_B, need_core))
    rows, x = grad.reshape(-1, grad.shape[-1]), ctx.saved_tensors[0]
    grad_weight = rows.T @ x.reshape(-1, x.shape[-1]) if need_weight else None
    return grad_x, grad_weight, rows.sum(0) if need_bias else None, grad_A, grad_B, None, None, grad_core, None


def _differentiate_add(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    need_out, need_x, need_A, need_B, _, _, need_core, _ = ctx.needs_input_grad
    grad_x, grad_A, grad_B, grad_core = _gradients(ctx, grad, (need_x, need_A, need_B, need_core))
    return grad if need_out else None, grad_x, grad_A, grad_B, None, None, grad_core, None


_block_lora.register_autograd(_differentiate, setup_context=_set_up)
_add_block_lora.register_autograd(_differentiate_add, setup_context=_set_up_add)


def block_lora(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scaling: float,
    dropout: float,
    core: Tensor | None = None,
    shuffle: bool = False,
) -> Tensor:
    """`batched.block_lora` as one node of a graph."""
    y: Tensor = _block_lora(x, weight, bias, A, B, scaling, dropout, core, shuffle)[0]
    return y


def add_block_lora(
    out: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float,
    dropout: float,
    core: Tensor | None = None,
    shuffle: bool = False,
) -> Tensor:
    """`batched.add_block_lora` as one node of a graph, out of place."""
    y: Tensor = _add_block_lora(out, x, A, B, scaling, dropout, core, shuffle)[0]
    return y
