"""Run by test_triton_target.py in a process without Triton's interpreter: what a GPU's compiler makes of the kernels.

Needs no GPU: Triton's wheel holds NVIDIA's assembler, and a target can be named.
"""

import re
import sys
from typing import Any

import torch
import triton
from torch._dynamo.backends.common import aot_autograd
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from melora.ops.triton import block_lora
from melora.ops.triton.kernels import backward_kernel, forward_kernel

HOPPER = GPUTarget("cuda", 90, 32)


def compiled(kernel: Any, dtype: str, constants: dict[str, Any], warps: int = 4) -> str:
    """The kernel's PTX, after it was assembled into machine code."""
    function = getattr(kernel, "fn", kernel)
    types = {"seed_ptr": "*i64", "out_ptr": "*i1", "grad_A_ptr": "*fp32", "grad_B_ptr": "*fp32"}
    types |= {"scaling": "fp32", "keep_scale": "fp32"}
    signature = {
        name: "constexpr" if name in constants else types.get(name, f"*{dtype}" if name.endswith("_ptr") else "i32")
        for name in function.arg_names
    }
    kernel = triton.compile(
        ASTSource(function, signature, constexprs=constants), target=HOPPER, options={"num_warps": warps}
    )
    assert len(kernel.asm["cubin"]) > 0
    return str(kernel.asm["ptx"])


def compile_all() -> None:
    for dtype, r, R, threshold, tile in [("bf16", 8, 16, 2**31, (16, 32)), ("fp32", 1, 1, 0, (16, 32))]:
        shape: dict[str, Any] = {"n": 8, "r": r, "block_in": 96, "block_out": 100, "R": R, "ADD": True}
        shape |= {"THRESHOLD": threshold, "BT": tile[0], "BD": tile[1], "x_column": 1}
        shape |= {} if threshold else {"seed_ptr": None, "tokens": 1}  # 1 is a constant to Triton
        needs = {"NEED_X": True, "NEED_A": True, "NEED_B": True, "grad_column": 1}
        for kernel, constants in ((forward_kernel, shape), (backward_kernel, shape | needs)):
            ptx = compiled(kernel, dtype, constants)
            assert not re.search(r"\b(atom|red)\.", ptx), "a sum by atomics has another order each time"
            assert ("mma" in ptx) == (dtype == "bf16"), "rank 8 in 16 bits is for tensor cores, rank 1 is not"


class NoGpuError(Exception):
    """Raised where the traced graph would run."""


def trace() -> list[torch.fx.GraphModule]:
    """Forward and backward as torch.compile traces them, any number of tokens, without breaks."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        def run(*_: Any) -> Any:
            raise NoGpuError

        graphs.append(graph)
        return run

    def layer(*t: torch.Tensor) -> torch.Tensor:
        return block_lora(*t[:3], 0.5, weight=t[3], bias=t[4], dropout=0.1)

    torch.compiler.reset()
    shapes = ((7, 24), (3, 2, 8), (3, 10, 2), (30, 24), (30,))
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    try:
        torch.compile(layer, fullgraph=True, backend=backend, dynamic=True)(
            *(torch.randn(shape, requires_grad=True) for shape in shapes)
        )
    except NoGpuError:
        return graphs
    raise AssertionError("the graph ran without a GPU")


def trace_all() -> None:
    class Driver:
        """Says which GPU the kernels would be compiled for: PyTorch's analysis of what they write asks for that."""

        def get_current_target(self) -> GPUTarget:
            return HOPPER

    triton.runtime.driver.set_active(Driver())
    written = [{"y_ptr", "u_ptr"}, {"grad_x_ptr", "grad_A_ptr", "grad_B_ptr"}]
    for graph, outputs in zip(trace(), written, strict=True):
        (kernel,) = [node for node in graph.graph.nodes if "tensors_to_clone" in node.kwargs]
        assert set(kernel.kwargs["tensors_to_clone"]) == outputs, kernel.kwargs["tensors_to_clone"]


if __name__ == "__main__":
    {"compile": compile_all, "trace": trace_all}[sys.argv[1]]()
