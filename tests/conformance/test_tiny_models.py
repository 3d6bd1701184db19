"""The tiny models that stand for the hub's."""

from pathlib import Path

import pytest
import torch
from conformance.tiny_models import MODELS, make_adapter, make_model
from peft import LoraConfig


@pytest.mark.parametrize("name", MODELS)
def test_every_model_runs_and_is_the_same_each_time(name: str) -> None:
    first, second = make_model(name).eval(), make_model(name)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    inputs = {"input_ids": torch.tensor([[3, 4, 5]])}
    if first.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        assert torch.isfinite(first(**inputs)[0]).all()


def test_the_adapter_is_found_in_both_revisions(tmp_path: Path) -> None:
    make_adapter(tmp_path)
    repository = tmp_path / "models--peft-internal-testing--tiny-opt-lora-revision"
    for revision in ("main", "test"):
        commit = (repository / "refs" / revision).read_text()
        assert LoraConfig.from_pretrained(str(repository / "snapshots" / commit)).target_modules == {"q_proj", "v_proj"}
