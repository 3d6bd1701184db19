"""The contestants: one frozen linear layer, bare or under an adapter, as a user of PEFT gets it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn

from ..config import MeloraConfig
from .problem import DTYPES, Problem


@dataclass(frozen=True)
class Contestant:
    """A module to measure.

    Attributes:
        method: "base", or PEFT's name for the method in small letters.
        rank: rank of its update; 0 for the base.
        parameters: how many numbers it trains.
    """

    method: str
    rank: int
    module: nn.Module
    parameters: int

    @property
    def trainable(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    @property
    def label(self) -> str:
        names = {"base": "frozen base", "lora": "PEFT LoRA", "melora": "MELoRA"}
        return names.get(self.method, self.method) + (f", rank {self.rank}" if self.rank else "")


class _Holder(nn.Module):
    """The smallest model that PEFT can adapt: it calls its one layer."""

    def __init__(self, proj: nn.Linear) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.proj(x)
        return y


def _lora(problem: Problem, rank: int) -> PeftConfig:
    # Random B, here and below: with B = 0 the gradients of A and of the adapter's input are zeros.
    return LoraConfig(r=rank, lora_dropout=problem.dropout, target_modules=["proj"], init_lora_weights=False)


def _melora(problem: Problem, rank: int) -> PeftConfig:
    return MeloraConfig(
        r=problem.r, n=problem.n, lora_dropout=problem.dropout, target_modules=["proj"], init_weights=False
    )


@dataclass(frozen=True)
class Peer:
    """How to make a contestant: PEFT's name of its method, the rank of its update, its config for that rank."""

    method: str
    rank: Callable[[Problem], int]
    config: Callable[[Problem, int], PeftConfig]


PEERS = (
    Peer("lora", lambda problem: problem.r, _lora),
    Peer("lora", lambda problem: problem.n * problem.r, _lora),
    Peer("melora", lambda problem: problem.n * problem.r, _melora),
)


def build(problem: Problem) -> list[Contestant]:
    """The frozen base first, then every peer in training mode, each around the same weight; LoRA once where n = 1."""
    dtype = DTYPES[problem.dtype]
    base = nn.Linear(problem.d_in, problem.d_out, dtype=dtype).requires_grad_(False)
    contestants = [Contestant("base", 0, _Holder(base), 0)]
    for peer in PEERS:
        rank = peer.rank(problem)
        if any((peer.method, rank) == (other.method, other.rank) for other in contestants):
            continue
        layer = nn.Linear(problem.d_in, problem.d_out, dtype=dtype, device="meta")
        layer.weight, layer.bias = base.weight, base.bias  # one weight, in the cache or not, for whoever's turn it is
        module = get_peft_model(_Holder(layer), peer.config(problem, rank)).train()
        parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
        contestants.append(Contestant(peer.method, rank, module, parameters))
    return contestants
