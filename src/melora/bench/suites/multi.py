"""Suite "multi": a batch whose rows use K different adapters, through PEFT's adapter_names, beside PEFT's own LoRA."""

import itertools
from collections.abc import Callable
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn

from ..attach import Stack, attach, start
from ..group import Built, Group
from ..options import Options
from ..peers import BASE, Peer
from ..row import Facts
from ..shapes import DTYPES, layer_gflop


def groups(options: Options) -> list[Group]:
    """One group for each width, dtype, n and r. As many rows of one token as the largest K, the same for every K."""
    rows = max(options.adapters)
    found = []
    for (d_in, d_out), dtype, (n, r) in itertools.product(options.widths(), options.dtypes, options.pairs):
        facts = Facts("multi", f"mixed batch, n x r = {n} x {r}", d_in, d_out, rows, dtype=dtype)
        found.append(_group(facts, [Peer("melora", n, r, n * r), Peer("lora", 1, n * r, n * r)], options))
    return found


def _group(facts: Facts, peers: list[Peer], options: Options) -> Group:
    counts = options.adapters
    numbers = max(counts) * sum(peer.rank * (facts.d_in + facts.d_out) for peer in peers)
    return Group(
        facts,
        peers=(BASE, *(peer for peer in peers for _ in counts)),
        build=lambda: _build(facts, peers, counts, options.device),
        gflop=layer_gflop(facts.d_in, facts.d_out, facts.tokens, backward=False),
        needs=4 * numbers + facts.d_in * facts.d_out * DTYPES[facts.dtype].itemsize,
        adapters=(1, *(counts * len(peers))),
        extra_seconds=0.03 * len(peers) * max(counts),  # PEFT adds adapters one by one
    )


def _build(facts: Facts, peers: list[Peer], counts: list[int], device: str) -> list[Built]:
    dtype = DTYPES[facts.dtype]
    base = Stack([nn.Linear(facts.d_in, facts.d_out, dtype=dtype, device=device)]).requires_grad_(False)
    x = torch.randn(facts.tokens, facts.d_in, dtype=dtype, device=device)
    built = [Built(0, _mixed(base, x, None))]
    for peer in peers:
        one = attach(peer, base, 0.0, ["proj"])
        parameters = one.parameters
        model = _with_adapters(cast(PeftModel, one.module), peer, max(counts))
        built += [Built(parameters * count, _mixed(model, x, count)) for count in counts]
    return built


def _with_adapters(model: PeftModel, peer: Peer, count: int) -> nn.Module:
    """`count` adapters in all: the one that it has, "default", and those called "1", "2" and so on."""
    others = [str(number) for number in range(1, count)]
    for name in others:
        model.add_adapter(name, peer.config(0.0, ["proj"]))
    # What is not active is not trained, and `start` passes over it.
    cast(Any, model.base_model).set_adapter(["default", *others])
    start(model)
    return model.eval()


def _mixed(model: nn.Module, x: torch.Tensor, count: int | None) -> Callable[[], object]:
    names = None if count is None else [str(row % count) if row % count else "default" for row in range(len(x))]
    options = {} if names is None else {"adapter_names": names}

    def step() -> None:
        with torch.no_grad():
            model(x, **options)

    return step
