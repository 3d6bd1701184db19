"""A block-diagonal factor in products with rows of tokens: into its ranks, out of them, and summed over the tokens.

Block by block these are batched products over strided views, which copy nothing. On CPUs some are faster with several
blocks merged into one, with zeros between them. Times are ms on 2 cores of a Xeon with AMX, d = 768, T = 2048
(benchmarks/pieces.py products):

- In 16 bits PyTorch's kernels copy strided views first. One dense product of all blocks reads the rows where they lie,
  and up to some width costs no more than reading them (bf16, 8x1 into ranks 0.45 -> 0.19, out of them 0.50 -> 0.40;
  64x1 1.04 -> 0.36, 3.55 -> 0.44). That takes a CPU with arithmetic for 16 bits.
- Else many small blocks are slow, each call having few columns and one rank. Merged to eight: fp32, 64x1 into ranks
  0.85 -> 0.53, out of them 0.85 -> 0.47, over the tokens 0.44 -> 0.33.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F

from .keep_bits import chunk_rows
from .plain import minis

FEWEST_ROWS = 128  # from which on it pays to write the zeros
_WIDEST = 128  # n * r up to which all blocks are merged in 16 bits
_GROUPS, _RANKS = 8, 8  # else: into how many blocks, and the most ranks that one may get
_NARROW = 32  # columns of a block below which elementwise products have loops too short


def choose_groups(rows: torch.Tensor, n: int, r: int) -> int:
    """How many blocks to merge n blocks of rank r into, for tokens `rows` (..., d): a divisor of n, n for no change."""
    if rows.device.type != "cpu" or rows.numel() < FEWEST_ROWS * rows.shape[-1]:
        return n
    if rows.element_size() == 2:
        return 1 if n * r <= _WIDEST and _has_arithmetic(rows.dtype) else n
    groups = max(divisor for divisor in range(1, min(n, _GROUPS) + 1) if n % divisor == 0)
    return groups if n // groups * r <= _RANKS else n


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
        groups: how many blocks to merge them into, as `choose_groups` says.

    Attributes:
        blocks: as given.
        groups: as given.
    """

    def __init__(self, blocks: torch.Tensor, groups: int) -> None:
        self.blocks = blocks
        self.groups = groups
        self._merged = None if groups == blocks.shape[0] else _between_zeros(blocks, groups)
        # r = 1: outer products, elementwise 2 to 3 times faster than the batched product (2 cores of an EPYC, fp32,
        # d = 768 to 2048, T = 2048: 0.24 against 0.57 ms, 1.09 against 3.21 ms).
        wide_enough = self._merged is None or (groups > 1 and blocks.shape[2] >= _NARROW)
        self._elementwise = blocks.shape[1] == 1 and wide_enough

    def project(self, rows: torch.Tensor) -> torch.Tensor:
        """(M_i rows_i)_i of shape (n, T, r), for rows (..., d) of T tokens."""
        n, r, _ = self.blocks.shape
        if self._merged is None:
            blocks, slices = _row_by_row(self.blocks), minis(rows, n)
            if r == 1 and rows.element_size() > 2:
                # The tokens as columns: each is one dot product (benchmarks/pieces.py cold, 2 cores of a Xeon, fp32,
                # T = 2048: d = 768 0.86 -> 0.58 ms, 2048 1.53 -> 0.84). Strided 16-bit rows have no fast kernel.
                return torch.bmm(blocks, slices.transpose(1, 2)).view(n, -1, 1)
            return torch.bmm(slices, blocks.transpose(1, 2))
        if self.groups == 1:
            u = F.linear(rows.reshape(-1, rows.shape[-1]), self._merged[0])
        else:
            u = rows.new_empty((rows.numel() // rows.shape[-1], n * r))
            minis(u, self.groups).baddbmm_(minis(rows, self.groups), self._merged.transpose(1, 2), beta=0)
        return minis(u, n)

    def accumulate(self, out: torch.Tensor, u: torch.Tensor, alpha: float) -> None:
        """out += alpha * u M in place; out (..., d) contiguous, u (n, T, r)."""
        n, _, width = self.blocks.shape
        rows = out.view(-1, n * width)
        if self._elementwise:
            minis(rows, n).addcmul_(u, self.blocks, value=alpha)
        elif self._merged is not None:
            if self.groups == 1:
                rows.addmm_(_side_by_side(u), self._merged[0], alpha=alpha)
            else:
                minis(rows, self.groups).baddbmm_(self._grouped(u), self._merged, alpha=alpha)
        elif out.element_size() == 2 and out.device.type == "cpu":
            # A strided batched product of 16-bit numbers has no fast kernel on the CPU (bf16, d = 768, T = 2048, 8x8:
            # 84 ms); chunks in fp32 that stay in the cache do, and round once.
            blocks = self.blocks.float()
            count = chunk_rows(n * width, out.device)
            for part, some in zip(minis(rows, n).split(count, 1), u.split(count, 1), strict=True):
                part.copy_(torch.baddbmm(part.float(), some.float(), blocks, alpha=alpha))
        else:
            minis(rows, n).baddbmm_(u, self.blocks, alpha=alpha)

    def accumulate_masked(self, out: torch.Tensor, u: torch.Tensor, mask: torch.Tensor, buffer: torch.Tensor) -> None:
        """out += mask * (u M) in place; out, mask and buffer (T, d), the latter two overwritten."""
        if self._elementwise:
            n = self.blocks.shape[0]
            minis(out, n).addcmul_(u, minis(mask.mul_(self.blocks.reshape(-1)), n))
            return
        merged = self.blocks if self._merged is None else self._merged
        share = torch.bmm(self._grouped(u), merged, out=buffer.view(self.groups, out.shape[0], -1))
        minis(out, self.groups).addcmul_(share, minis(mask, self.groups))

    def summed(self, u: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """(u_i^T rows_i)_i of the blocks' shape (n, r, d / n), summed over the tokens; u (n, T, r), rows (..., d)."""
        # As u^T rows, not its transpose: 20 times faster than rows^T u, whose rows are d apart (2 cores of an EPYC,
        # fp32, d = 768, T = 2048, 8x1: 0.22 against 4.4 ms).
        if self._merged is None:
            # For r = 1 the strides of a row, which no transpose gives the dimension of size 1.
            columns = u.squeeze(2).unsqueeze(1) if u.shape[2] == 1 else u.transpose(1, 2)
            return torch.bmm(columns, minis(rows, self.groups))
        n, r, width = self.blocks.shape
        if self.groups == 1:
            every = _side_by_side(u).T @ rows.reshape(-1, n * width)  # each block's u with all slices
        else:
            every = torch.bmm(self._grouped(u).transpose(1, 2), minis(rows, self.groups))
        own = every.view(self.groups, n // self.groups, r, -1, width).diagonal(dim1=1, dim2=3)
        return own.permute(0, 3, 1, 2).reshape(n, r, width)

    def _grouped(self, u: torch.Tensor) -> torch.Tensor:
        """(n, T, r) -> (groups, T, n / groups * r): a view of what `project` gave."""
        return u if self._merged is None else minis(_side_by_side(u), self.groups)


def _between_zeros(blocks: torch.Tensor, groups: int) -> torch.Tensor:
    """(n, r, m) -> (groups, n / groups * r, n / groups * m). torch.block_diag takes ten times as long for 64 blocks."""
    n, r, width = blocks.shape
    each = n // groups
    zeros = blocks.new_zeros((groups, each, r, each, width))
    zeros.diagonal(dim1=1, dim2=3).copy_(blocks.reshape(groups, each, r, width).permute(0, 2, 3, 1))
    return zeros.view(groups, each * r, each * width)


def _side_by_side(u: torch.Tensor) -> torch.Tensor:
    """(n, T, r) -> (T, n r): a view of what a merged `project` gave."""
    return u.transpose(0, 1).reshape(u.shape[1], -1)


def _row_by_row(blocks: torch.Tensor) -> torch.Tensor:
    """B's blocks laid out as A's are: their product with tokens is then 1.7 to 4 times faster.

    Fp32, one thread of an EPYC, d = 768, T = 2048: 8x1 3.1 -> 0.8 ms, 8x8 3.6 -> 2.1 ms. The copy is as small as B.
    """
    n, r, width = blocks.shape
    if r == 1 and blocks.transpose(1, 2).is_contiguous():
        return blocks.transpose(1, 2).view(n, 1, width)  # the same numbers, but strides that the product takes as rows
    return blocks.contiguous()
