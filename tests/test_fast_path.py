"""In eval mode PyTorch's encoder layers read weights without calling modules; an adapter inside must still count."""

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

from melora import MeloraConfig


class Model(nn.Module):
    def __init__(self, stacked: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder: nn.Module = nn.TransformerEncoder(layer, 2) if stacked else layer

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        y: torch.Tensor = self.encoder(x, **kwargs)
        return y


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("targets", [["self_attn"], ["linear1"], ["self_attn", "linear2"]])
@pytest.mark.parametrize("masked", [True, False])
def test_adapters_count_in_inference(stacked: bool, targets: list[str], masked: bool) -> None:
    torch.manual_seed(0)
    base = Model(stacked)
    hooks = [len(module._forward_pre_hooks) for module in base.modules()]
    model = get_peft_model(base, MeloraConfig(n=4, target_modules=targets, init_weights=False))
    model.add_adapter("second", MeloraConfig(n=2, target_modules=targets))
    x = torch.randn(3, 5, 8)
    kwargs = {"src_key_padding_mask": torch.tensor([[False] * 4 + [True]] * 3)} if masked else {}
    expected = model.train()(x, **kwargs)[:, :4]
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x, **kwargs)[:, :4], expected)
    merged = model.merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(merged(x, **kwargs)[:, :4], expected, rtol=1e-4, atol=1e-4)
    assert [len(module._forward_pre_hooks) for module in merged.modules()] == hooks
    if stacked:
        assert merged.encoder.use_nested_tensor


def test_encoders_without_adapters_keep_their_fast_path() -> None:
    model = nn.ModuleDict({"encoder": nn.TransformerEncoderLayer(8, 2, 16), "head": nn.Linear(8, 4)})
    get_peft_model(model, MeloraConfig(n=4, target_modules=["head"]))
    assert not model["encoder"]._forward_pre_hooks
