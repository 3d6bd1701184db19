"""Suite "layer": forward and backward of one linear layer, and what it keeps in between."""

import itertools
from collections.abc import Callable

import torch
from torch import nn

from ..attach import Contestant, Stack, attach
from ..group import Built, Group
from ..memory import saved_bytes
from ..options import Options
from ..peers import Peer, choose
from ..row import Facts
from ..shapes import DTYPES, layer_bytes, layer_gflop


def groups(options: Options) -> list[Group]:
    """One group for each width, number of tokens, dtype and dropout; all n and r of it share the base's timing."""
    return [
        layer_group(Facts("layer", "layer", d_in, d_out, tokens, dtype=dtype, dropout=dropout), options)
        for (d_in, d_out), tokens, dtype, dropout in itertools.product(
            options.widths(), options.tokens, options.dtypes, options.dropouts
        )
    ]


def layer_group(facts: Facts, options: Options, pairs: list[tuple[int, int]] | None = None) -> Group:
    """A group of this suite's kind, for other suites as well; `facts.layers` layers, one after the other."""
    peers = choose(options.peers, pairs or options.pairs, facts.d_in, facts.d_out)
    return Group(
        facts,
        peers,
        build=lambda: build(facts, peers, options.device),
        gflop=facts.layers * layer_gflop(facts.d_in, facts.d_out, facts.tokens),
        needs=facts.layers * layer_bytes(facts.d_in, facts.d_out, facts.tokens, facts.dtype, peers),
    )


def contestants(facts: Facts, peers: tuple[Peer, ...], device: str) -> list[Contestant]:
    """Every peer around the same stack of layers."""
    dtype = DTYPES[facts.dtype]
    layers = [nn.Linear(facts.d_in, facts.d_out, dtype=dtype, device=device) for _ in range(facts.layers)]
    base = Stack(layers)
    return [attach(peer, base, facts.dropout, ["proj"]) for peer in peers]


def build(facts: Facts, peers: tuple[Peer, ...], device: str) -> list[Built]:
    """y = layer(x) and the gradients of x and of the adapter, on one shared x.

    x is (tokens, d_in) and wants a gradient, as it does inside a network; the base's own weight does not.
    """
    dtype = DTYPES[facts.dtype]
    x = torch.randn(facts.tokens, facts.d_in, dtype=dtype, device=device, requires_grad=True)
    grad = torch.randn(facts.tokens, facts.d_out, dtype=dtype, device=device)
    return [
        Built(contestant.parameters, step_of(contestant, x, grad), saved_of(contestant, x))
        for contestant in contestants(facts, peers, device)
    ]


def step_of(contestant: Contestant, x: torch.Tensor, grad: torch.Tensor) -> Callable[[], object]:
    """One forward and backward; autograd.grad, so that no gradient adds up from step to step."""
    wanted = [x, *contestant.trainable]
    return lambda: torch.autograd.grad(contestant.module(x), wanted, grad)


def saved_of(contestant: Contestant, x: torch.Tensor) -> Callable[[], int]:
    """Measures what a forward keeps."""
    return lambda: saved_bytes(lambda: contestant.module(x), [x, *contestant.module.parameters()])
