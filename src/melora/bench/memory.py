"""What a forward pass keeps for the backward pass."""

from collections.abc import Callable, Iterable

import torch


def saved_bytes(forward: Callable[[], torch.Tensor], known: Iterable[torch.Tensor]) -> int:
    """Bytes of the distinct storages that autograd saves while `forward` runs, without those of `known`.

    Args:
        forward: runs one forward pass with gradients on.
        known: tensors that live anyway, such as the input and the weights.

    Counts what goes through autograd's saved tensors, which is all that PyTorch's own functions keep, and custom ones
    that use ctx.save_for_backward.
    """
    known_storages = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)  # alive until all are counted, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    storages = {s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in kept)}
    del output
    return sum(size for address, size in storages.items() if address not in known_storages)
