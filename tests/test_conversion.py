import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from melora import MeloraConfig, MeloraError
from melora.conversion import export_lora, new_folder
from melora.lora_layout import lora_factors

X = torch.linspace(-1, 1, 5 * 24).view(5, 24)


def save(make_mlp: Callable[..., nn.Module], path: Path, **kwargs: Any) -> Any:
    config = MeloraConfig(**{"r": 2, "n": 6, "target_modules": ["first", "head"], "init_weights": False, **kwargs})
    model = get_peft_model(make_mlp(), config).eval()
    model.save_pretrained(path)
    return model


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 5), r=st.integers(1, 3), i=st.integers(1, 4), o=st.integers(1, 4), extra=st.integers(0, 3))
def test_factors_give_the_update_exactly(n: int, r: int, i: int, o: int, extra: int) -> None:
    A, B, scaling = torch.randn(n, r, i).double(), torch.randn(n, o, r).double(), 0.3
    lora_A, lora_B = lora_factors(A, B, scaling, n * r + extra)
    assert lora_A.shape == (n * r + extra, n * i)
    assert lora_B.shape == (n * o, n * r + extra)
    torch.testing.assert_close(lora_B @ lora_A, scaling * torch.block_diag(*(B @ A)), rtol=1e-14, atol=1e-14)
    assert not lora_A[n * r :].any()
    assert not lora_B[:, n * r :].any()


@pytest.mark.parametrize(("scaling", "dtype"), [(2.0, torch.bfloat16), (0.3, torch.float32)])
def test_16_bits_are_kept_where_nothing_is_rounded(scaling: float, dtype: torch.dtype) -> None:
    A, B = torch.randn(2, 1, 4).bfloat16(), torch.randn(2, 4, 1).bfloat16()
    lora_A, lora_B = lora_factors(A, B, scaling, 2)
    assert lora_A.dtype == lora_B.dtype == dtype


class LargestInFp64(TorchDispatchMode):
    """Remembers how many elements the largest fp64 tensor has."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            self.elements = max(self.elements, result.numel())
        return result


def test_the_scaling_in_fp64_is_done_while_the_factors_are_compact() -> None:
    A, B = torch.randn(4, 2, 8), torch.randn(4, 8, 2)
    with LargestInFp64() as seen:
        lora_factors(A, B, 0.3, rank=8)
    assert 0 < seen.elements == B.numel()  # dense, it would be n times as large


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3},
        {"rank_pattern": {"first": 4}, "n_pattern": {"head": 3}, "alpha_pattern": {"first": 5}},
        {"target_modules": r"(first|head)"},
        {"target_modules": "all-linear", "exclude_modules": ["middle"]},
        {"bias": "melora_only"},
        {"bias": "all"},
        {"target_modules": ["middle"], "fan_in_fan_out": True},
    ],
)
def test_loads_in_peft_as_a_plain_lora(make_mlp: Callable[..., nn.Module], tmp_path: Path, kwargs: Any) -> None:
    model = save(make_mlp, tmp_path / "melora", **kwargs)
    export = export_lora(tmp_path / "melora", tmp_path / "lora")
    loaded = PeftModel.from_pretrained(make_mlp(), tmp_path / "lora").eval()
    assert loaded.peft_config["default"].peft_type == "LORA"
    torch.testing.assert_close(loaded(X), model(X), rtol=0, atol=1e-5)
    assert export.modules == len(loaded.base_model.targeted_module_names)


def test_the_form_that_every_server_takes(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    patterns: Any = {"rank_pattern": {"first": 3}, "alpha_pattern": {"first": 5}, "n_pattern": {"head": 2}}
    save(make_mlp, tmp_path / "melora", use_rslora=True, **patterns)
    export = export_lora(tmp_path / "melora", tmp_path / "lora")
    assert (export.rank, export.vllm_max_lora_rank, export.warnings) == (18, 32, [])
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["r"] == config["lora_alpha"] == 18
    assert not config["use_rslora"]
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]
    assert config["target_modules"] == ["first", "head"]
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {
        "base_model.model.first.lora_A.weight": (18, 24),
        "base_model.model.first.lora_B.weight": (48, 18),
        "base_model.model.head.lora_A.weight": (18, 48),
        "base_model.model.head.lora_B.weight": (6, 18),
    }


STOCK = """
import sys, torch
sys.modules["melora"] = None  # importing it would fail
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
base = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
model = PeftModel.from_pretrained(base, sys.argv[2])
torch.save(model(input_ids=torch.tensor([[3, 4, 5, 6]])).logits, sys.argv[3])
"""


def test_a_process_without_melora_gives_the_same_logits(tiny_bert: Any, tmp_path: Path) -> None:
    tiny_bert.save_pretrained(tmp_path / "base")
    config = MeloraConfig(n=4, init_weights=False, target_modules=["query", "value"], task_type="SEQ_CLS")
    model = get_peft_model(tiny_bert, config).eval()
    model.save_pretrained(tmp_path / "melora")
    export = export_lora(tmp_path / "melora", tmp_path / "lora")
    assert export.warnings == ["modules_to_save (classifier, score) is rejected by vLLM; PEFT loads it"]
    command = [sys.executable, "-c", STOCK, tmp_path / "base", tmp_path / "lora", tmp_path / "logits.pt"]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    expected = model(input_ids=torch.tensor([[3, 4, 5, 6]])).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=0, atol=1e-5)


def test_warns_of_ranks_above_the_weights_own_and_above_vllms(
    make_mlp: Callable[..., nn.Module], tmp_path: Path
) -> None:
    save(make_mlp, tmp_path / "melora", n=24, r=24, target_modules=["first", "middle"])
    export = export_lora(tmp_path / "melora", tmp_path / "lora")
    assert export.rank == 576
    assert export.vllm_max_lora_rank is None
    assert export.warnings == [
        "rank 576 is above 512, the largest that vLLM takes: merge instead",
        "n * r exceeds the weight's own rank in first and 1 more: lower n or r",
    ]


def test_an_existing_folder_is_not_touched(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    save(make_mlp, tmp_path / "melora")
    (tmp_path / "lora").mkdir()
    with pytest.raises(MeloraError, match="exists already; choose another folder or remove it first"):
        export_lora(tmp_path / "melora", tmp_path / "lora")
    assert list((tmp_path / "lora").iterdir()) == []


def test_a_lora_is_not_converted_again(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    save(make_mlp, tmp_path / "melora")
    export_lora(tmp_path / "melora", tmp_path / "lora")
    with pytest.raises(MeloraError, match="is a LORA adapter already"):
        export_lora(tmp_path / "lora", tmp_path / "again")


def test_a_damaged_adapter_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(MeloraError, match="no adapter_config"):
        export_lora(tmp_path / "nowhere", tmp_path / "lora")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_half_way_leaves_no_trace(tmp_path: Path) -> None:
    def write_half() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("x")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert list(tmp_path.iterdir()) == []
