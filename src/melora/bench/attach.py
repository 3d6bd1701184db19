"""Contestants: one frozen model, bare or under an adapter, as a user of PEFT gets it; all share its weights."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft import get_peft_model
from torch import nn

from .own_peers import wrap
from .peers import Peer


@dataclass(frozen=True)
class Contestant:
    """A module to measure, and the peer that it is."""

    peer: Peer
    module: nn.Module

    @property
    def trainable(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.trainable)


class Stack(nn.Module):
    """The smallest model that PEFT can adapt: linear layers, one after the other, all named "proj"."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"proj": layer}) for layer in layers)

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer["proj"](x)  # type: ignore[index]  # a ModuleList forgets its type; a cast would be timed
        return x


def attach(peer: Peer, base: nn.Module, dropout: float, targets: list[str]) -> Contestant:
    """`base` itself for the base; else a copy under the peer's adapter, in training mode.

    A copy shares the base's weights: they are in the cache or not for whoever's turn it is. Only a merged contestant
    (setting "merged") has weights of its own.
    """
    base.requires_grad_(False)
    if peer.method == "base":
        return Contestant(peer, base)
    merged = peer.setting == "merged"
    tensors = [] if merged else [*base.parameters(), *base.buffers()]
    model = copy.deepcopy(base, memo={id(tensor): tensor for tensor in tensors})
    if peer.method in ("loop", "einsum", "dense"):
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in targets:
                model.set_submodule(name, wrap(peer, layer, dropout))
        return Contestant(peer, model.train())
    adapted = get_peft_model(model, peer.config(dropout, targets)).train()
    start(adapted)
    if merged:
        adapted.merge_adapter()
    return Contestant(peer, adapted)


def start(adapted: nn.Module) -> None:
    """Small random numbers for what is trained and still 0, B in most methods.

    At B = 0 the gradients of A and of x are zeros. At numbers as large as `init_weights=False` gives, the update of a
    MELoRA of rank 1, which is scaled by alpha, is many times the base's output: attention over it saturates, and sums
    over denormal numbers are slow.
    """
    for parameter in adapted.parameters():
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
