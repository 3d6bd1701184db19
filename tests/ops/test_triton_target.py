"""What the interpreter can't show: the kernels compile for a GPU, and torch.compile sees what they write."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed (CUDA builds of torch bring it; make installs it)")


@pytest.mark.parametrize("what", ["compile", "trace"])
def test_for_a_gpu(what: str, tmp_path: Path) -> None:
    """`compile`: to machine code, no atomics, tensor cores where meant. `trace`: one graph, only outputs written."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    script = Path(__file__).with_name("gpu_target.py")
    done = subprocess.run([sys.executable, script, what], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
