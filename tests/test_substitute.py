"""Adapters that replace a weight for the call, also inside an FSDP model."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import get_peft_model, get_peft_model_state_dict
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from melora import MeloraConfig
from melora.substitute import call_with


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(12, 2)
        self.last = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.mha(x, x, x)[0])
        return y


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group(backend="gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[no-untyped-call]
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore:When using ``NO_SHARD``")
@pytest.mark.parametrize(
    "targets", [{"target_modules": ["mha"]}, {"target_modules": [], "target_parameters": ["last.weight"]}]
)
def test_fsdp_runs_the_adapter(targets: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = get_peft_model(Attention(), MeloraConfig(n=2, r=2, init_weights=False, **targets)).eval()
    x = torch.randn(5, 12)
    with torch.no_grad():
        wanted = model(x)
        saved = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about FSDP's own future
            sharded = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
        torch.testing.assert_close(sharded(x), wanted)
        gathered = get_peft_model_state_dict(sharded)
    assert gathered.keys() == saved.keys()
    assert all(torch.equal(saved[name], gathered[name]) for name in saved)


def test_an_attribute_that_hides_the_parameter_is_there_again_afterwards() -> None:
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    shadow = layer.weight.detach().clone()
    layer.__dict__["weight"] = shadow
    weight = torch.randn(2, 3, requires_grad=True)
    output = call_with(nn.Sequential(layer), {"0.weight": weight}, (x,), {})
    torch.testing.assert_close(output, x @ weight.T + layer.bias)
    output.sum().backward()
    assert weight.grad is not None
    assert layer.__dict__["weight"] is shadow
