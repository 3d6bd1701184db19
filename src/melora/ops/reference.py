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
    core: torch.Tensor | None = None,
    shuffle: bool = False,
) -> torch.Tensor:
    """y = W x + b + scaling * concat_i(B_i A_i x_i), written as the paper draws it (arXiv 2402.17263).

    Args:
        x: (..., d_in). Slice i is its i-th run of d_in / n neighbouring channels.
        A: (n, r, d_in / n), one matrix a mini.
        B: (n, d_out / n, r), one matrix a mini.
        scaling: the factor on the adapter's output.
        weight: (d_out, d_in), the frozen weight; None leaves W x out.
        bias: (d_out,), used with `weight` only.
        core: (r, n, n); block (i, j) of the update is then B_i diag(core[:, i, j]) A_j, and zero without it where i
            and j differ.
        shuffle: block (i, j) is sum_p B_i[:, j q + p] A_j[i q + p] over p below q = r / n.

    Returns:
        (..., d_out)
    """
    n, r, block_in = A.shape
    slices = [x[..., i * block_in : (i + 1) * block_in] for i in range(n)]
    outputs = []
    for i in range(n):
        if shuffle:
            q = r // n
            parts = [slices[j] @ A[j, i * q : (i + 1) * q].T @ B[i, :, j * q : (j + 1) * q].T for j in range(n)]
            outputs.append(sum(parts[1:], start=parts[0]))
        elif core is not None:
            parts = [(slices[j] @ A[j].T * core[:, i, j]) @ B[i].T for j in range(n)]
            outputs.append(sum(parts[1:], start=parts[0]))
        else:
            outputs.append(slices[i] @ A[i].T @ B[i].T)
    adapter = scaling * torch.cat(outputs, dim=-1)
    return adapter if weight is None else F.linear(x, weight, bias) + adapter
