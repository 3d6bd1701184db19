"""add_weighted_adapter on every layer type: what the new adapter adds is the weighted sum of what the others add."""

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from melora import MeloraConfig, MeloraError

WEIGHTS = [0.7, -1.3]
# n = 2 spans two of the last convolution's four groups: its ranks belong to groups.
LAYERS: dict[str, tuple[nn.Module, torch.Tensor]] = {
    "linear": (nn.Linear(8, 12), torch.randn(5, 8)),
    "conv1d transposed": (Conv1D(12, 8), torch.randn(5, 8)),
    "embedding": (nn.Embedding(20, 8), torch.randint(20, (5, 3))),
    "conv1d": (nn.Conv1d(8, 12, 3), torch.randn(2, 8, 9)),
    "conv2d": (nn.Conv2d(8, 12, (3, 2), stride=2, padding=1, dilation=2), torch.randn(2, 8, 9, 9)),
    "conv3d": (nn.Conv3d(4, 6, 2), torch.randn(2, 4, 3, 3, 3)),
    "conv2d, 2 groups": (nn.Conv2d(8, 12, 3, groups=2), torch.randn(2, 8, 9, 9)),
    "conv2d, 4 groups": (nn.Conv2d(8, 12, 3, groups=4), torch.randn(2, 8, 9, 9)),
}
KINDS = [{"combination_type": "cat"}, {"combination_type": "svd", "svd_rank": 6}]


def two_adapters(base: nn.Module, **kwargs: Any) -> Any:
    config = {"target_modules": ["0"], "n": 2, "init_weights": False, **kwargs}
    model = get_peft_model(nn.Sequential(base), MeloraConfig(r=2, lora_alpha=3, **config), adapter_name="one")
    model.add_adapter("two", MeloraConfig(r=4, lora_alpha=5, **config))
    return model.double().eval()


def added(model: Any, adapter: str, x: torch.Tensor) -> torch.Tensor:
    """What the adapter adds to the base's output."""
    model.set_adapter(adapter)
    with model.disable_adapter():
        base: torch.Tensor = model(x)
    return model(x) - base


@pytest.mark.parametrize("options", KINDS, ids=["cat", "svd"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:.*can't be merged")
def test_exact_combinations(name: str, options: dict[str, Any]) -> None:
    base, x = LAYERS[name]
    model = two_adapters(base)
    x = x.double() if x.is_floating_point() else x
    if name == "conv2d, 4 groups" and options["combination_type"] == "svd":
        with pytest.raises(MeloraError, match="mixes the groups"):  # no weight of the base can hold the update
            model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum", **options)
        return
    model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum", **options)
    wanted = WEIGHTS[0] * added(model, "one", x) + WEIGHTS[1] * added(model, "two", x)
    model.double()  # the new adapter is made in fp32
    torch.testing.assert_close(added(model, "sum", x), wanted, atol=1e-5, rtol=1e-5)


def test_attention_and_its_output_projection() -> None:
    model = two_adapters(nn.MultiheadAttention(8, 2))
    model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum", combination_type="cat")
    attention = model.base_model.model[0]
    for layer in (attention, attention.get_base_layer().out_proj):
        wanted = WEIGHTS[0] * layer.get_delta_weight("one") + WEIGHTS[1] * layer.get_delta_weight("two")
        torch.testing.assert_close(layer.get_delta_weight("sum").double(), wanted, atol=1e-5, rtol=1e-5)
    assert model.peft_config["sum"].target_modules == {"0"}


def test_parameters_are_refused_as_for_lora() -> None:
    model = two_adapters(nn.Linear(8, 12), target_modules=[], target_parameters=["0.weight"])
    with pytest.raises(MeloraError, match=r"does not support targeting nn\.Parameter"):
        model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum")
