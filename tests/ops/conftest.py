"""Mends what Triton's interpreter (3.9) gets wrong with bfloat16, so that kernels checked in it are checked at all."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def right_bfloat16() -> Iterator[None]:
    """Products of bfloat16 in fp32, and rounding to nearest even, as a GPU does both.

    The interpreter keeps bfloat16 as uint16. Its tl.dot multiplies these integers, and its conversion from fp32 cuts
    the last bits off.
    """
    tl = pytest.importorskip("triton.language")
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def right_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        wide = [cast(self, v, tl.float32) if v.dtype.scalar == tl.bfloat16 else v for v in (a, b)]
        return dot(self, *wide, d, *options)

    def right_cast(self: Any, src: Any, dst_type: Any) -> Any:
        if (src.dtype.scalar, dst_type.scalar) == (tl.float32, tl.bfloat16):
            bits = np.ascontiguousarray(src.data, dtype=np.float32).view(np.uint32)
            rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            finite = np.isfinite(src.data)
            return TensorHandle(np.where(finite, rounded, bits >> np.uint32(16)).astype(np.uint16), tl.bfloat16)
        return cast(self, src, dst_type)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", right_dot)
        patch.setattr(InterpreterBuilder, "cast_impl", right_cast)
        yield
