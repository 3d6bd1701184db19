"""The switch between batched products and kernels."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import nn

from melora import MeloraConfig
from melora.errors import MeloraError
from melora.ops import backend, batched, use_backend
from melora.ops.backend import chosen_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MELORA_BACKEND", raising=False)
    monkeypatch.setattr(backend, "_chosen", None)


def test_batched_products_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen_backend() is batched
    monkeypatch.setenv("MELORA_BACKEND", "batched")
    use_backend("batched")
    assert chosen_backend() is batched


def test_layers_run_the_kernels_when_asked(make_mlp: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("melora.ops.triton", reason="triton is not installed")
    config = MeloraConfig(r=2, n=6, target_modules=["first", "middle"], init_weights=False, lora_dropout=0.1)
    model = get_peft_model(make_mlp(), config).to(DEVICE).eval()
    x = torch.linspace(-1, 1, 120, device=DEVICE).view(5, 24)
    expected = model(x)
    calls: list[float] = []
    run = kernels.block_lora
    monkeypatch.setattr(kernels, "block_lora", lambda *a, **k: calls.append(k["dropout"]) or run(*a, **k))
    monkeypatch.setenv("MELORA_BACKEND", "triton")
    monkeypatch.setattr(backend, "_chosen", None)
    torch.testing.assert_close(model(x), expected)
    assert calls == [0.0, 0.0]
    model.double()(x.double())  # not a dtype of the kernels: batched products
    assert calls == [0.0, 0.0]
    model.float().train()(x).sum().backward()
    assert calls[2:] == [0.1, 0.1]


def test_an_unknown_name_is_told_before_a_module_is_touched(
    make_mlp: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MELORA_BACKEND", "tritron")
    model = make_mlp()
    with pytest.raises(MeloraError, match="MELORA_BACKEND=tritron is not known: choose from batched, triton"):
        get_peft_model(model, MeloraConfig(r=1, n=6, target_modules=["first"]))
    assert type(model.first) is nn.Linear


def test_without_triton_melora_runs_and_says_so_when_asked_for_kernels(tmp_path: Path) -> None:
    (tmp_path / "triton.py").write_text("raise ImportError('none here')\n")
    code = (
        "import melora\n"
        "from melora.errors import MeloraError\n"
        "from melora.ops import batched, use_backend\nfrom melora.ops.backend import chosen_backend\n"
        "assert chosen_backend() is batched\n"
        "try:\n    use_backend('triton')\nexcept MeloraError as error:\n    print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "triton can't be imported (none here): pip install triton, or MELORA_BACKEND=batched" in done.stdout
