"""Suite "decode": one token without gradients, adapters in place and merged; a single layer, and a whole small model.

Here Python's dispatch counts, not arithmetic. The model's step is one more token behind 128 in the cache.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from ..attach import attach
from ..group import Built, Group
from ..models import MODELS, check_model, random_model
from ..options import Options
from ..peers import Peer, choose
from ..row import Facts
from ..shapes import DTYPES, layer_gflop
from .layer import contestants

PAST = 128
TARGETS = "query+value"


def groups(options: Options) -> list[Group]:
    """One group for each width, or causal model, with each batch and dtype."""
    found = []
    for batch, dtype in itertools.product(options.batches, options.dtypes):
        for d_in, d_out in options.widths():
            facts = Facts("decode", "decoding layer", d_in, d_out, batch, dtype=dtype)
            peers = _with_merged(choose(options.peers, options.pairs, d_in, d_out))
            found.append(_layer_group(facts, peers, options.device))
        for name in (name for name in options.models if MODELS[name].causal):
            shape = MODELS[name]
            check_model(name, shape.targets[TARGETS], options.pairs)
            facts = Facts("decode", f"decoding {name} {TARGETS}", tokens=1, batch=batch, dtype=dtype)
            peers = _with_merged(choose(options.peers, options.pairs, shape.width, shape.width))
            found.append(_model_group(facts, name, peers, options.device))
    return found


def _with_merged(peers: tuple[Peer, ...]) -> tuple[Peer, ...]:
    """One MELoRA merged as well: they all cost the same then."""
    return (*peers, replace(next(peer for peer in peers if peer.method == "melora"), setting="merged"))


def _layer_group(facts: Facts, peers: tuple[Peer, ...], device: str) -> Group:
    def build() -> list[Built]:
        x = torch.randn(facts.tokens, facts.d_in, dtype=DTYPES[facts.dtype], device=device)
        found = contestants(facts, peers, device)
        return [Built(one.parameters, _without_gradient(one.module.eval(), x)) for one in found]

    return Group(facts, peers, build, gflop=layer_gflop(facts.d_in, facts.d_out, facts.tokens, backward=False))


def _without_gradient(module: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    def step() -> None:
        with torch.no_grad():
            module(x)

    return step


def _model_group(facts: Facts, name: str, peers: tuple[Peer, ...], device: str) -> Group:
    shape = MODELS[name]

    def build() -> list[Built]:
        model = random_model(shape, DTYPES[facts.dtype], device)
        ids = torch.randint(0, shape.vocabulary, (facts.batch, PAST), device=device)
        found = [attach(peer, model, 0.0, shape.targets[TARGETS]) for peer in peers]
        return [Built(one.parameters, _next_token(one.module.eval(), ids)) for one in found]

    weights = shape.numbers * DTYPES[facts.dtype].itemsize
    return Group(facts, peers, build, gflop=2 * shape.numbers * facts.batch / 1e9, needs=3 * weights)


def _next_token(model: nn.Module, ids: torch.Tensor) -> Callable[[], object]:
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, use_cache=True)

    def step() -> None:
        with torch.no_grad():
            model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return step
