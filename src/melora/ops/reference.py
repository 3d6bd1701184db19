"""The equation as a loop over minis: the oracle of the tests, never used otherwise."""

import torch
import torch.nn.functional as F


def block_lora_reference(
    x: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    *,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """y = W x + b + scaling * concat_i(B_i A_i x_i), written as the paper draws it (arXiv 2402.17263).

    Args:
        x: (..., d_in). Slice i is its i-th run of d_in / n neighbouring channels.
        A: (n, r, d_in / n), one matrix a mini.
        B: (n, d_out / n, r), one matrix a mini.
        scaling: the factor on the adapter's output.
        weight: (d_out, d_in), the frozen weight; None leaves W x out.
        bias: (d_out,), used with `weight` only.

    Returns:
        (..., d_out)
    """
    block_in = A.shape[2]
    outputs = []
    for i in range(A.shape[0]):
        x_i = x[..., i * block_in : (i + 1) * block_in]
        outputs.append(x_i @ A[i].T @ B[i].T)
    adapter = scaling * torch.cat(outputs, dim=-1)
    return adapter if weight is None else F.linear(x, weight, bias) + adapter
