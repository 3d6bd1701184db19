"""A block-diagonal factor in products with rows of tokens: into its ranks, out of them, and summed over the tokens.

Block by block these are batched products over strided views, which copy nothing. In 16 bits PyTorch's CPU kernels copy
such views first. Where the CPU has arithmetic for 16 bits, one dense product with zeros between the blocks is faster:
it reads the rows where they lie, and up to some width costs no more than reading them (2 cores of a Xeon with AMX,
bf16, d = 768, T = 2048, ms: 8x1 into ranks 0.43 -> 0.14, out of them 0.41 -> 0.32; 64x1 0.89 -> 0.26, 3.34 -> 0.37).
"""

from functools import lru_cache

import torch
import torch.nn.functional as F

from .keep_bits import chunk_rows
from .plain import minis

# n * r up to which a dense product is taken, and the rows from which on it pays to write the zeros.
_WIDEST = 128
_FEWEST_ROWS = 128


def is_dense_faster(rows: torch.Tensor, ranks: int) -> bool:
    """Whether `BlockDiagonal` should be dense for tokens `rows` (..., d) and n * r = `ranks`."""
    return (
        rows.element_size() == 2
        and rows.device.type == "cpu"
        and ranks <= _WIDEST
        and rows.numel() >= _FEWEST_ROWS * rows.shape[-1]
        and _has_arithmetic(rows.dtype)
    )


@lru_cache(None)
def _has_arithmetic(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies in this 16-bit type; without it PyTorch's own loops take over, 20 times slower."""
    if not torch.backends.mkldnn.is_available():
        return False
    checks = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype in checks and bool(checks[dtype]())


class BlockDiagonal:
    """blockdiag(M_1, ..., M_n), of n * r rows and d columns.

    Args:
        blocks: (n, r, d / n): A, or B with its last two dimensions exchanged.
        dense: multiply with the zeros between the blocks, as `is_dense_faster` says.

    Attributes:
        blocks: as given.
        dense: (n * r, d) or None.
    """

    def __init__(self, blocks: torch.Tensor, dense: bool) -> None:
        self.blocks = blocks
        self.dense = _between_zeros(blocks) if dense else None

    def project(self, rows: torch.Tensor) -> torch.Tensor:
        """(M_i rows_i)_i of shape (n, T, r), for rows (..., d) of T tokens."""
        n, r, _ = self.blocks.shape
        if self.dense is not None:
            return F.linear(rows.reshape(-1, rows.shape[-1]), self.dense).view(-1, n, r).transpose(0, 1)
        return torch.bmm(minis(rows, n), _row_by_row(self.blocks).transpose(1, 2))

    def accumulate(self, out: torch.Tensor, u: torch.Tensor, alpha: float) -> None:
        """out += alpha * u M in place; out (..., d) contiguous, u (n, T, r)."""
        n, r, width = self.blocks.shape
        if self.dense is not None:
            out.view(-1, n * width).addmm_(_side_by_side(u), self.dense, alpha=alpha)
            return
        slices = out.view(-1, n, width).transpose(0, 1)
        if r == 1:
            # Outer products: elementwise is 2 to 3 times faster than the batched product (2 cores, fp32, d = 768 to
            # 2048, T = 2048: 0.24 against 0.57 ms, 1.09 against 3.21 ms).
            slices.addcmul_(u, self.blocks, value=alpha)
        elif out.element_size() == 2 and out.device.type == "cpu":
            # A strided batched product of 16-bit numbers has no fast kernel on the CPU (bf16, d = 768, T = 2048, 8x8:
            # 84 ms); chunks in fp32 that stay in the cache do, and round once.
            blocks = self.blocks.float()
            count = chunk_rows(n * width, out.device)
            for part, some in zip(slices.split(count, 1), u.split(count, 1), strict=True):
                part.copy_(torch.baddbmm(part.float(), some.float(), blocks, alpha=alpha))
        else:
            slices.baddbmm_(u, self.blocks, alpha=alpha)

    def spread(self, u: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        """u M as slices (n, T, d / n), over `buffer` (T, d), contiguous."""
        n, _, width = self.blocks.shape
        if self.dense is not None:
            return minis(torch.mm(_side_by_side(u), self.dense, out=buffer), n)
        return torch.bmm(u, self.blocks, out=buffer.view(n, -1, width))

    def summed(self, u: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """(u_i^T rows_i)_i of the blocks' shape (n, r, d / n), summed over the tokens; u (n, T, r), rows (..., d)."""
        n, r, width = self.blocks.shape
        if self.dense is not None:
            every = _side_by_side(u).T @ rows.reshape(-1, n * width)  # each block's u with all slices
            return every.view(n, r, n, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        # As u^T rows, not its transpose: 20 times faster than rows^T u, whose rows are d apart (2 cores, fp32, d = 768,
        # T = 2048, 8x1: 0.22 against 4.4 ms).
        return torch.bmm(u.transpose(1, 2), minis(rows, n))


def _between_zeros(blocks: torch.Tensor) -> torch.Tensor:
    """(n, r, m) -> (n r, n m). torch.block_diag takes ten times as long for 64 blocks."""
    n, r, width = blocks.shape
    dense = blocks.new_zeros((n, r, n, width))
    dense.diagonal(dim1=0, dim2=2).copy_(blocks.permute(1, 2, 0))
    return dense.view(n * r, n * width)


def _side_by_side(u: torch.Tensor) -> torch.Tensor:
    """(n, T, r) -> (T, n r): a view of what a dense `project` gave."""
    return u.transpose(0, 1).reshape(u.shape[1], -1)


def _row_by_row(blocks: torch.Tensor) -> torch.Tensor:
    """B's blocks laid out as A's are: their product with tokens is then 1.7 to 4 times faster.

    Fp32, one thread, d = 768, T = 2048: 8x1 3.1 -> 0.8 ms, 8x8 3.6 -> 2.1 ms. The copy is as small as B.
    """
    n, r, width = blocks.shape
    if r == 1 and blocks.transpose(1, 2).is_contiguous():
        return blocks.transpose(1, 2).view(n, 1, width)  # the same numbers, but strides that the product takes as rows
    return blocks.contiguous()
