"""Starts of A and B that are read off the weight or its gradient: PiSSA, OLoRA and LoRA-GA on each diagonal block.

PEFT subtracts such a start from the base weight, W - s B0 A0, so that the model's output is unchanged. An adapter is
then wrong on the original base until it is converted. Here the base stays as it is, and A0 and B0 are kept:

    dW_i = s (B_i A_i - B0_i A0_i) = s ((B_i - B0_i) A_i + B0_i (A_i - A0_i))

Outputs and the gradients of A and B are those of PEFT's way, and everything else that is done with an update (merging,
switching off, a second adapter, saving, export) is right as it stands, on quantised bases too, where PEFT has to
requantise the residual. The right-hand side is what is computed: it is exactly 0 at the start, and in 16 bits small
moves of A and B are not lost beside A0 and B0. The price is a product of rank 2r instead of r, and r (d_in + d_out)
frozen numbers in memory and in the file; no trained number is added.
"""

import re
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .errors import MeloraError

INIT_WEIGHTS = "True, False, 'gaussian', 'pissa', 'pissa_niter_N' (N a number of iterations), 'olora' or 'lora_ga'"
START = ".start"  # how the names of the frozen starts end, in models and files

# LoRA-GA's "stable" scale: both factors are orthonormal times d_out^(1/4) / sqrt(gamma), gamma = 16 (arXiv 2407.05000).
_GAMMA = 16.0
_PISSA = re.compile(r"pissa(?:_niter_(\d{1,4}))?")

_gradients: "WeakKeyDictionary[nn.Module, torch.Tensor]" = WeakKeyDictionary()


def is_init(value: Any) -> bool:
    """Whether MeloraConfig.init_weights may be `value`."""
    return value is True or value is False or value == "gaussian" or has_start(value)


def has_start(init_weights: Any) -> bool:
    """Whether an adapter of that init_weights is measured from a start that is not 0."""
    return isinstance(init_weights, str) and (init_weights in ("olora", "lora_ga") or is_pissa(init_weights))


def is_pissa(init_weights: str) -> bool:
    return _PISSA.fullmatch(init_weights) is not None


def directions(init_weights: Any) -> int:
    """How many directions of a mini's block each of its ranks takes: 2 with LoRA-GA, whose A0 and B0 share none."""
    return 2 if init_weights == "lora_ga" else 1


def start_factors(
    init_weights: str, matrices: torch.Tensor, r: int, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """A0 and B0 of every matrix, in its dtype.

    - "pissa" (Meng et al., NeurIPS 2024, arXiv 2404.02948): scaling * B0 A0 is the best approximation of rank r, with
      half of the singular values in each factor. "pissa_niter_N": by torch.svd_lowrank with N iterations, as in PEFT.
    - "olora" (Buyukakyildiz, 2024, arXiv 2406.01775): B0 A0 are the first r columns of Q times the first r rows of R.
      PEFT's convention: without division by the scaling.
    - "lora_ga" (Wang, Yu and Li, NeurIPS 2024, arXiv 2407.05000), of gradients: A0 are the first r right singular
      vectors, B0 the next r left ones, both scaled by rows^(1/4) / 4. One step of gradient descent then moves B A
      along the best approximation of rank 2r to the negative gradient. (PEFT 0.21 scales B0 by the singular values as
      well, and loses that.)

    Args:
        init_weights: one of these.
        matrices: (..., rows, columns): the blocks of the weight, or of its gradient for "lora_ga".
        r: at most min(rows, columns), for "lora_ga" at most half of it.
        scaling: of the adapter.

    Returns:
        A0 (..., r, columns) and B0 (..., rows, r).
    """
    if init_weights == "olora":
        Q, R = torch.linalg.qr(matrices)
        return R[..., :r, :], Q[..., :r]
    if init_weights == "lora_ga":
        U, _, Vh = torch.linalg.svd(matrices, full_matrices=False)
        scale = matrices.shape[-2] ** 0.25 / _GAMMA**0.5
        return Vh[..., :r, :] * scale, U[..., r : 2 * r] * scale
    match = _PISSA.fullmatch(init_weights)
    assert match is not None
    if match[1] is None:
        U, S, Vh = torch.linalg.svd(matrices, full_matrices=False)
    else:
        U, S, V = torch.svd_lowrank(matrices, r, niter=int(match[1]))
        Vh = V.mT
    root = (S[..., :r] / scaling).sqrt()
    return Vh[..., :r, :] * root.unsqueeze(-1), U[..., :r] * root.unsqueeze(-2)


def joined(A: torch.Tensor, B: torch.Tensor, A0: torch.Tensor, B0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of rank 2r whose product is B A - B0 A0: [A; A - A0] and [B - B0, B0]. Differentiable in A and B.

    Args:
        A: (n, r, columns), or with more dimensions before or behind r, as the layer has them.
        B: (n, rows, r), or with more dimensions before the rows.
        A0, B0: of the same shapes.
    """
    A0, B0 = A0.detach(), B0.detach()
    return torch.cat([A, A - A0], dim=B.dim() - 2), torch.cat([B - B0, B0], dim=-1)


def check_start(module: str, init_weights: Any, rows: int, columns: int, r: int) -> None:
    """Check that a mini's block is large enough for such a start; nothing is to check without one.

    Args:
        module: the module's name, for the message.
        init_weights: the config's.
        rows, columns: of one block.
        r: rank of one mini.

    Raises:
        MeloraError: it is not.
    """
    if not has_start(init_weights):
        return
    needed = directions(init_weights) * r
    most = min(rows, columns) // directions(init_weights)
    if needed > min(rows, columns):
        way_out = f"choose r up to {most} (rank_pattern for this module alone), a smaller n" if most else "a smaller n"
        raise MeloraError(
            f"{module}: init_weights={init_weights!r} takes {needed} directions of each mini's block for r={r}, and a "
            f"block is {rows} x {columns}: {way_out}, or init_weights=True"
        )


def keep_gradient(base: nn.Module, gradient: torch.Tensor) -> None:
    """Keep the gradient of a base layer's weight, (d_out, d_in), until an adapter starts from it or the layer goes."""
    _gradients[base] = gradient


def gradient_of(base: nn.Module) -> torch.Tensor | None:
    """What `keep_gradient` kept."""
    return _gradients.get(base)


def forget_gradients(model: nn.Module) -> None:
    """Forget what is kept for the layers of `model`."""
    for module in model.modules():
        _gradients.pop(module, None)
