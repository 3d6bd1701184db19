"""Adding and loading adapters while others are merged: the same as with LoRA."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from melora import MeloraConfig

X = torch.linspace(-1, 1, 5 * 24).view(5, 24)
METHODS: dict[str, Callable[[], Any]] = {
    "LoRA": lambda: LoraConfig(r=2, target_modules=["first", "head"], init_lora_weights=False),
    "MELoRA": lambda: MeloraConfig(r=2, n=3, target_modules=["first", "head"], init_weights=False),
}


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_load_then_set(
    method: str, low_cpu_mem_usage: bool, make_mlp: Callable[..., nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    other = get_peft_model(make_mlp(), METHODS[method]()).eval()
    other.save_pretrained(tmp_path)
    base = make_mlp()
    weight = base.get_parameter("first.weight").detach().clone()
    model: Any = get_peft_model(base, METHODS[method]()).eval()
    output = model(X)

    model.merge_adapter()
    with pytest.warns(UserWarning, match="Unmerging the model first"):
        model.load_adapter(tmp_path, adapter_name="other", low_cpu_mem_usage=low_cpu_mem_usage)
    torch.testing.assert_close(model(X), output)  # the first adapter is active still, unmerged
    model.set_adapter("other")
    torch.testing.assert_close(model(X), other(X))
    torch.testing.assert_close(model.base_model.model.first.get_base_layer().weight, weight)


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_on_a_merged_and_unloaded_model_adds_to_it(
    method: str, make_mlp: Callable[..., nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    get_peft_model(make_mlp(), METHODS[method]()).save_pretrained(tmp_path)
    merged = get_peft_model(make_mlp(), METHODS[method]()).merge_and_unload().eval()
    output = merged(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model: Any = PeftModel.from_pretrained(merged, tmp_path).eval()
    with model.disable_adapter():
        assert torch.equal(model(X), output)
    assert not torch.allclose(model(X), output)
    unmerged = model(X)
    model.merge_adapter()
    torch.testing.assert_close(model(X), unmerged)
    model.unmerge_adapter()
    torch.testing.assert_close(model(X), unmerged)
