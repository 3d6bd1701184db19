"""Ranks mixed across blocks and channels permuted, in two processes over gloo, against one with the whole batch."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from melora import MeloraConfig, calibrate

SETTINGS = list(itertools.product(["none", "learned", "shuffle"], ["none", "strided", "correlation"]))
X = torch.linspace(-3, 3, 8 * 12, dtype=torch.float64).sin().view(8, 12)


def adapted(mixing: Any, permute: Any) -> Any:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8)).double()
    targets = ["0", "2"]
    config = MeloraConfig(n=2, r=2, mixing=mixing, permute=permute, init_weights=False, target_modules=targets)
    return get_peft_model(base, config)


def train(model: nn.Module, x: torch.Tensor) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def rank(number: int, folder: str) -> None:
    """One process: half of the rows, and an order from the first process alone, which DDP sends to the other."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    trained = {}
    for mixing, permute in SETTINGS:
        model = adapted(mixing, permute)
        if permute == "correlation" and number == 0:
            calibrate(model, [{"input": X}])
        train(DistributedDataParallel(model), X[4 * number : 4 * number + 4])
        trained[mixing, permute] = model.state_dict()
    torch.save(trained, f"{folder}/{number}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of two processes has after training, by setting: one start for all."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(rank, args=(str(folder),), nprocs=2)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{number}.pt") for number in range(2)]


@pytest.mark.parametrize(("mixing", "permute"), SETTINGS)
def test_two_processes_train_what_one_does(mixing: str, permute: str, ranks: list[Any]) -> None:
    model = adapted(mixing, permute)
    if permute == "correlation":
        calibrate(model, [{"input": X}])
    start = {key: value.clone() for key, value in model.state_dict().items()}
    train(model, X)
    moved = {
        key.rpartition("melora_")[2][0] for key, value in model.state_dict().items() if (value != start[key]).any()
    }
    assert moved == {"A", "B"} | ({"C"} if mixing == "learned" else set())
    for of_rank in ranks:
        torch.testing.assert_close(of_rank[mixing, permute], dict(model.state_dict()), rtol=1e-12, atol=1e-12)
