"""peft.utils.hotswap on MELoRA: what it swaps, and what PEFT refuses or can't do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from torch import nn

from melora import MeloraConfig

X = torch.linspace(-1, 1, 5 * 24).view(5, 24)


def config(**kwargs: Any) -> MeloraConfig:
    return MeloraConfig(**{"r": 2, "n": 3, "target_modules": ["first", "middle"], "init_weights": False, **kwargs})


@pytest.fixture
def saved(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> Callable[..., tuple[Path, torch.Tensor]]:
    """Saves an adapter of that config; returns its folder and its model's output."""

    def save(seed: int, **kwargs: Any) -> tuple[Path, torch.Tensor]:
        torch.manual_seed(seed)
        model = get_peft_model(make_mlp(), config(**kwargs)).eval()
        model.save_pretrained(tmp_path / str(seed))
        return tmp_path / str(seed), model(X).detach()

    return save


@pytest.mark.parametrize("other", [{}, {"lora_alpha": 3}, {"r": 4}, {"target_modules": ["first"]}])
def test_swaps_weights_and_scaling(
    other: dict[str, Any], saved: Callable[..., tuple[Path, torch.Tensor]], make_mlp: Callable[..., nn.Module]
) -> None:
    first, output = saved(1)
    second, wanted = saved(2, **other)
    model = PeftModel.from_pretrained(make_mlp(), first).eval()
    assert torch.equal(model(X), output)
    hotswap_adapter(model, str(second), adapter_name="default", torch_device="cpu")
    torch.testing.assert_close(model(X), wanted)
    if not other:  # and back
        hotswap_adapter(model, str(first), adapter_name="default", torch_device="cpu")
        assert torch.equal(model(X), output)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"n": 6}, "Configs are incompatible: for n, 3 != 6"),
        ({"n_pattern": {"first": 6}}, "Configs are incompatible: for n_pattern"),
        ({"alpha_pattern": {"first": 6}}, "Configs are incompatible: for alpha_pattern"),
        ({"use_rslora": True}, "Configs are incompatible: for use_rslora"),
        ({"target_modules": ["first", "middle", "head"]}, "unexpected keys found"),
    ],
)
def test_what_does_not_fit_is_refused(
    other: dict[str, Any],
    message: str,
    saved: Callable[..., tuple[Path, torch.Tensor]],
    make_mlp: Callable[..., nn.Module],
) -> None:
    first, output = saved(1)
    second, _ = saved(2, **other)
    model = PeftModel.from_pretrained(make_mlp(), first).eval()
    with pytest.raises((ValueError, RuntimeError), match=message):
        hotswap_adapter(model, str(second), adapter_name="default", torch_device="cpu")
    assert torch.equal(model(X), output)


def test_a_merged_adapter_is_not_swapped(
    saved: Callable[..., tuple[Path, torch.Tensor]], make_mlp: Callable[..., nn.Module]
) -> None:
    first, _ = saved(1)
    model = PeftModel.from_pretrained(make_mlp(), first)
    model.merge_adapter()
    with pytest.raises(ValueError, match="currently merged into the base weights"):
        hotswap_adapter(model, str(first), adapter_name="default", torch_device="cpu")


def test_a_smaller_rank_and_a_prepared_model_are_beyond_peft(
    saved: Callable[..., tuple[Path, torch.Tensor]], make_mlp: Callable[..., nn.Module]
) -> None:
    """PEFT pads Linear and Conv2d factors of LoRA only: load the adapter under another name instead."""
    first, _ = saved(1)
    second, wanted = saved(2, r=1)
    model = PeftModel.from_pretrained(make_mlp(), first).eval()
    with pytest.raises(ValueError, match="No adapter layers found on the model"):
        prepare_model_for_compiled_hotswap(model, target_rank=4)
    with pytest.raises(NotImplementedError, match="whose weight has 3 dimensions"):
        hotswap_adapter(model, str(second), adapter_name="default", torch_device="cpu")
    model.load_adapter(str(second), adapter_name="other")
    model.set_adapter("other")
    assert torch.equal(model.eval()(X), wanted)
