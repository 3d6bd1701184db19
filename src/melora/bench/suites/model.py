"""Suite "model": a whole training step, with loss and optimiser, beside the frozen model's forward and backward.

The base's step is forward, loss, and backward down to the embeddings' output; no weight has a gradient, so there is no
optimiser. Every contestant's embeddings want a gradient too: what is above the base is the adapter's alone.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from ..attach import Contestant, attach
from ..group import Built, Group
from ..memory import peak_bytes
from ..models import MODELS, check_model, random_model
from ..options import Options
from ..peers import Peer, choose
from ..row import Facts
from ..shapes import DTYPES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Peers that stand for a training method; the others are ways to compute a layer.
BESIDE = ["lora", "gralora", "bdlora"]


def groups(options: Options) -> list[Group]:
    """One group for each model, set of targets, dtype and dropout."""
    found = []
    names = options.peers if options.peers_given else BESIDE
    for name, dtype, dropout in itertools.product(options.models, options.dtypes, options.dropouts):
        shape = MODELS[name]
        for targets, modules in shape.targets.items():
            check_model(name, modules, options.pairs)
            facts = Facts(
                "model", f"{name} {targets}", tokens=shape.per, batch=shape.step, dtype=dtype, dropout=dropout
            )
            peers = choose(names, options.pairs, shape.width, shape.width)
            found.append(_group(facts, name, modules, peers, options.device))
    return found


def _group(facts: Facts, name: str, targets: list[str], peers: tuple[Peer, ...], device: str) -> Group:
    shape = MODELS[name]
    tokens = facts.tokens * facts.batch
    return Group(
        facts,
        peers,
        build=lambda: _build(facts, name, targets, peers, device),
        gflop=4 * shape.numbers * tokens / 1e9,
        needs=2 * shape.numbers * DTYPES[facts.dtype].itemsize,
    )


def _build(facts: Facts, name: str, targets: list[str], peers: tuple[Peer, ...], device: str) -> list[Built]:
    shape = MODELS[name]
    model = random_model(shape, DTYPES[facts.dtype], device)
    ids = torch.randint(0, shape.vocabulary, (facts.batch, facts.tokens), device=device)
    labels = ids if shape.causal else torch.randint(0, 2, (facts.batch,), device=device)
    steps = [(one, _step(one, ids, labels)) for one in (attach(p, model, facts.dropout, targets) for p in peers)]
    return [Built(one.parameters, step, peak=partial(peak_bytes, step, device)) for one, step in steps]


def _step(contestant: Contestant, ids: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    model, trainable = contestant.module, contestant.trainable
    embeddings = cast("PreTrainedModel", model).get_input_embeddings()
    optimizer = torch.optim.AdamW(trainable, lr=1e-4) if trainable else None

    def want_gradient(module: nn.Module, given: object, output: torch.Tensor) -> torch.Tensor:
        return output.detach().requires_grad_()

    def step() -> None:
        hook = embeddings.register_forward_hook(want_gradient)  # contestants share the embeddings: only for this call
        loss = model(input_ids=ids, labels=labels).loss
        hook.remove()
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step
