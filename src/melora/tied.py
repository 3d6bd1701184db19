"""Weights that two modules share, such as a token embedding and the head: a merge must reach the adapted one alone."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .merging import MergingLayer


@contextmanager
def untied(model: nn.Module, adapter_names: list[str] | None = None) -> Iterator[None]:
    """Give every layer that is about to be merged a weight of its own, where it shares one with another module.

    Adding an update to a shared weight would put it into the other module as well, whose output then differs from that
    of the unmerged model (PEFT's LoRA does that, 0.21). PEFT sets the config's tie_word_embeddings to False when it
    unloads such a model. Weights are shared again where the merge fails.

    Args:
        model: with adapters in it.
        adapter_names: those about to be merged; by default the active ones.
    """
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    shared: list[tuple[nn.Module, nn.Parameter]] = []
    for layer in model.modules():
        if isinstance(layer, MergingLayer) and layer.scaling.keys() & set(adapter_names or layer.active_adapters):
            base = layer.get_base_layer()
            weight = base._parameters.get("weight")
            if weight is not None and not weight.is_meta and owners[id(weight)] > 1:
                owners[id(weight)] -= 1
                shared.append((base, weight))
                base.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    try:
        yield
    except BaseException:
        for base, weight in shared:
            base.weight = weight
        raise
