"""Suite "compile": a layer under torch.compile, without graph breaks, beside the same layer run eagerly."""

import itertools
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from ..group import Built, Group
from ..options import Options
from ..peers import Peer, choose
from ..row import Facts
from ..shapes import DTYPES, layer_bytes, layer_gflop
from .layer import contestants, step_of

BACKEND = "inductor"
COMPILING = 15.0  # seconds, for a forward and a backward graph


def groups(options: Options) -> list[Group]:
    """One group for each width, number of tokens, dtype and dropout: every contestant twice."""
    found = []
    for (d_in, d_out), tokens, dtype, dropout in itertools.product(
        options.widths(), options.tokens, options.dtypes, options.dropouts
    ):
        facts = Facts("compile", "compiled layer", d_in, d_out, tokens, dtype=dtype, dropout=dropout)
        found.append(_group(facts, choose(options.peers, options.pairs, d_in, d_out), options.device))
    return found


def _group(facts: Facts, peers: tuple[Peer, ...], device: str) -> Group:
    return Group(
        facts,
        peers + tuple(replace(peer, setting="compiled") for peer in peers),
        build=lambda: _build(facts, peers, device),
        gflop=layer_gflop(facts.d_in, facts.d_out, facts.tokens),
        needs=2 * layer_bytes(facts.d_in, facts.d_out, facts.tokens, facts.dtype, peers),
        extra_seconds=COMPILING * len(peers),
    )


def _build(facts: Facts, peers: tuple[Peer, ...], device: str) -> list[Built]:
    dtype = DTYPES[facts.dtype]
    x = torch.randn(facts.tokens, facts.d_in, dtype=dtype, device=device, requires_grad=True)
    grad = torch.randn(facts.tokens, facts.d_out, dtype=dtype, device=device)
    eager = contestants(facts, peers, device)
    torch.compiler.reset()  # graphs of an earlier group would count towards the limit of recompiled ones
    compiled = [
        # fullgraph: a graph break is an error here, and the suite fails rather than timing half a graph.
        replace(one, module=cast(nn.Module, torch.compile(one.module, backend=BACKEND, fullgraph=True)))
        for one in eager
    ]
    return [Built(one.parameters, step_of(one, x, grad)) for one in eager + compiled]
