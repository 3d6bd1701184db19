import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from melora.training.evaluate import restore

TEXTS = ["the film is great", "a dull and awful plot"]

STOCK_PEFT = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
base = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], num_labels=1)
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
batch = AutoTokenizer.from_pretrained(sys.argv[2])(json.loads(sys.argv[3]), padding=True, return_tensors="pt")
assert not any(name.startswith("melora") for name in sys.modules)
print(json.dumps(model(**batch).logits.tolist()))
"""


@pytest.fixture
def expected(trained_run: Path) -> torch.Tensor:
    """Logits of the trained run on TEXTS."""
    restored = restore(trained_run)
    with torch.no_grad():
        logits: torch.Tensor = restored.with_adapter()(
            **restored.tokenizer(TEXTS, padding=True, return_tensors="pt")
        ).logits
    return logits


def test_lora_gives_the_same_logits_in_stock_peft(
    melora: Callable[..., Any], trained_run: Path, tiny_model: Path, tmp_path: Path, expected: torch.Tensor
) -> None:
    output = tmp_path / "lora"
    done = melora("export", trained_run, "--to", "lora", "--output", output)
    assert done.code == 0, done.err
    assert f"{output}: 4 modules of rank 4, exact" in done.out
    assert "needs --max-lora-rank 8" in done.out
    assert "modules_to_save (classifier) is rejected by vLLM" in done.err
    command = [sys.executable, "-W", "ignore", "-c", STOCK_PEFT, str(tiny_model), str(output), json.dumps(TEXTS)]
    fresh = subprocess.run(command, capture_output=True, text=True, check=True)
    torch.testing.assert_close(torch.tensor(json.loads(fresh.stdout)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("part", ["", "adapter"])
def test_merged_is_a_plain_model(
    melora: Callable[..., Any], trained_run: Path, tmp_path: Path, expected: torch.Tensor, part: str
) -> None:
    output = tmp_path / "merged"
    done = melora("export", trained_run / part, "--to", "merged", "--output", output)
    assert done.code == 0, done.err
    assert "drift" in done.out
    assert ("32 validation rows" if not part else "64 random inputs") in done.out
    assert (output / "melora_task.json").is_file()
    model = AutoModelForSequenceClassification.from_pretrained(output).eval()
    batch = AutoTokenizer.from_pretrained(output)(TEXTS, padding=True, return_tensors="pt")
    torch.testing.assert_close(model(**batch).logits.detach(), expected, atol=1e-5, rtol=0)


def test_the_default_place_is_in_the_run(melora: Callable[..., Any], trained_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    assert melora("export", run, "--to", "lora").code == 0
    assert (run / "lora" / "adapter_model.safetensors").is_file()
    again = melora("export", run, "--to", "lora")
    assert again.code == 2
    assert "exists already" in again.err


@pytest.mark.parametrize("to", ["lora", "merged"])
def test_nothing_is_overwritten(melora: Callable[..., Any], trained_run: Path, tmp_path: Path, to: str) -> None:
    (tmp_path / "mine").mkdir()
    done = melora("export", trained_run, "--to", to, "--output", tmp_path / "mine")
    assert done.code == 2
    assert "exists already" in done.err
    assert not list((tmp_path / "mine").iterdir())


def test_a_quantised_base_is_refused_unless_allowed(
    melora: Callable[..., Any], trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = AutoModelForSequenceClassification.from_pretrained

    def quantised(*args: Any, **kwargs: Any) -> Any:
        loaded = original(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.config.quantization_config = {"quant_method": "of the test"}
        return loaded

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", quantised)
    done = melora("export", trained_run, "--to", "merged", "--output", tmp_path / "merged")
    assert done.code == 2
    assert "is quantised" in done.err
    assert "--allow-quantized" in done.err
    assert not (tmp_path / "merged").exists()


def test_a_bare_adapter_must_name_its_base(melora: Callable[..., Any], trained_run: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(trained_run / "adapter", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    done = melora("export", adapter, "--to", "merged")
    assert done.code == 2
    assert "names no base model" in done.err


@pytest.mark.parametrize("to", ["lora", "merged"])
def test_what_is_no_adapter(melora: Callable[..., Any], tmp_path: Path, to: str) -> None:
    done = melora("export", tmp_path, "--to", to)
    assert done.code == 2
    assert "no adapter_config.json in it" in done.err
    assert not list(tmp_path.iterdir())


def test_allow_quantized_is_for_merging(melora: Callable[..., Any], trained_run: Path) -> None:
    assert (
        "--allow-quantized: is for --to merged"
        in melora("export", trained_run, "--to", "lora", "--allow-quantized").err
    )
