"""Problem: one shape to measure, checked before anything is allocated."""

import math
from dataclasses import dataclass

import psutil
import torch

from ..config import positive_int
from ..errors import MeloraError
from ..shapes import check_shape

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class Problem:
    """One linear layer of weight (d_out, d_in) that `tokens` rows go through, and the adapter on it.

    Attributes:
        n, r: number of minis of the MELoRA contestant, and rank of one.
        dtype: a key of DTYPES, of weight and input.
        dropout: probability, of every adapter.
    """

    d_in: int
    d_out: int
    tokens: int
    n: int
    r: int
    dtype: str
    dropout: float

    def check(self) -> None:
        """Raise MeloraError unless the problem can be built here."""
        for option, value in (("--d-in", self.d_in), ("--d-out", self.d_out), ("--n", self.n), ("--r", self.r)):
            positive_int(option, value)
        if self.tokens < 1:
            raise MeloraError(f"--tokens must be at least 1, got {self.tokens}: choose --tokens 2048, say")
        if self.dtype not in DTYPES:
            raise MeloraError(f"--dtype {self.dtype} is not known: choose from {', '.join(DTYPES)}")
        if not (math.isfinite(self.dropout) and 0.0 <= self.dropout < 1.0):
            raise MeloraError(f"--dropout must be at least 0 and below 1, got {self.dropout}")
        check_shape(f"bench layer {self.d_in} -> {self.d_out}", self.d_in, self.d_out, self.n, self.r)
        needed, free = self.peak_bytes(), psutil.virtual_memory().available
        if needed > free:
            raise MeloraError(
                f"bench layer {self.d_in} -> {self.d_out} with {self.tokens} tokens needs about "
                f"{needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free: choose fewer tokens or a smaller layer"
            )

    def peak_bytes(self) -> int:
        """Estimated bytes at the peak: the weight; x, its gradient, a dropped copy; y, its gradient, an adapter's y."""
        elements = self.d_in * self.d_out + 3 * self.tokens * (self.d_in + self.d_out)
        # The factors and the products in between, the widest contestant's: a LoRA of rank n * r.
        elements += 3 * self.n * self.r * (self.d_in + self.d_out + self.tokens)
        return elements * DTYPES[self.dtype].itemsize
