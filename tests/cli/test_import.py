"""melora import"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn

from melora.adapter_files import read_adapter


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 4))
    config = LoraConfig(r=4, target_modules=["0", "1"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def test_writes_the_adapter_and_says_what_it_keeps(melora: Callable[..., Any], lora: Path) -> None:
    done = melora("import", lora, "--n", 2, "--min-energy", 0)
    assert done.code == 0, done.err
    assert "12 x 8" in done.out
    assert f"MELoRA adapter  {lora}-melora: 2 modules, n=2, r=2; keeps " in done.out
    assert read_adapter(f"{lora}-melora").config.n == 2


def test_an_output_folder_and_a_rank(melora: Callable[..., Any], lora: Path, tmp_path: Path) -> None:
    assert melora("import", lora, "--n", 1, "--r", 4, "--output", tmp_path / "out").code == 0
    assert read_adapter(tmp_path / "out").config.r == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", 4], "keeps"),
        (["--n", 3], "n=3 does not divide"),
        ([], "--n"),
        (["--n", "two"], "invalid int value"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    melora: Callable[..., Any], lora: Path, arguments: list[Any], message: str
) -> None:
    done = melora("import", lora, *arguments)
    assert done.code == 2
    assert message in done.err
    assert not Path(f"{lora}-melora").exists()
