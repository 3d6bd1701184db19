"""What a forward pass keeps for the backward pass, and the most that a step holds at once."""

from collections.abc import Callable, Iterable
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile


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


def peak_bytes(step: Callable[[], object], device: str) -> int:
    """The most bytes that `step` has allocated at once, above what lived before it. Exact: from the allocator.

    On a CPU the profiler's record of every allocation, which leaves out what a product's own kernel takes for itself.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    changes = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate((int(event.nbytes()) for event in changes), initial=0))
