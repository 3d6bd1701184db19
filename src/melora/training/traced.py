"""How much memory a step needs, found by running it on tensors that have a shape and no content."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make while it is active, and lose again.

    Attributes:
        now: bytes that are alive.
        peak: the most there were at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def ignore(self, tensor: torch.Tensor) -> None:
        """Leave out a tensor that was there before."""
        self._known.add(tensor.untyped_storage())

    def _count(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._lose, size).atexit = False

    def _lose(self, size: int) -> None:
        self.now -= size


def trace_peak(
    model: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    step: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor | None],
    device: str,
) -> int:
    """The most bytes that are alive at once during a step, beside the model's own weights.

    Nothing is computed, so it takes a second and no memory whatever the size of the model, and holds for any
    architecture and attention, activation checkpointing included.

    Args:
        model: on the meta device; it stays as it is.
        batch: what it is called with.
        step: makes the loss; gradients of it are then taken. None: it was an evaluation.
        device: whose operations would run, such as "cpu" or "cuda".
    """
    mode, live = FakeTensorMode(allow_non_fake_inputs=True), LiveBytes()
    with mode:
        inputs = {name: torch.empty_like(value, device=device) for name, value in batch.items()}
        # deepcopy takes what it finds here for a tensor's copy, in every place where the tensor stands.
        copies = {id(old): _like(old, device) for old in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, dict(copies))
    for tensor in (*copies.values(), *inputs.values()):
        live.ignore(tensor)
    with mode, live:
        loss = step(twin, inputs)
        if loss is not None:
            loss.backward()
    return live.peak


def _like(old: torch.Tensor, device: str) -> torch.Tensor:
    new = torch.empty_like(old, device=device)
    return torch.nn.Parameter(new, old.requires_grad) if isinstance(old, torch.nn.Parameter) else new
