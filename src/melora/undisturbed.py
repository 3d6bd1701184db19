"""Running a model forward and backward and leaving it as it was."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from .no_dropout import no_dropout


@contextmanager
def undisturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """A block in which `model` is run for its gradients, without dropout, and comes out as it was, after errors too.

    Inside, gradients are on, every parameter is frozen (so that no `.grad` is touched), random numbers start from
    `seed`, and the model is in eval mode but for modules with activation checkpointing, which is off in eval mode, and
    for quantised layers, which bitsandbytes (0.50) repacks on CPUs in eval mode; what these would drop is not dropped
    either (no_dropout.py). Taken back at the end: requires_grad, train and eval mode, buffers, the state of torch's
    random numbers, and that of PyTorch's fused attention path.
    """
    with ExitStack() as stack:
        stack.enter_context(_random_numbers(model, seed))
        stack.enter_context(torch.enable_grad())
        if any(hasattr(module, "_orig_mod") or module._compiled_call_impl for module in model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code would pass hooks over
        for module in model.modules():
            stack.callback(_put_back, module, module.training, dict(module._buffers), _copies(module))
        for parameter in model.parameters():
            if parameter.requires_grad:
                stack.callback(parameter.requires_grad_, True)
                parameter.requires_grad_(False)
        # In eval mode nn.TransformerEncoderLayer reads its submodules' weights and calls none of them.
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(no_dropout(model))
        for module in model.modules():
            module.training = _stays_in_training(module)
        yield


def _copies(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module._buffers.items() if buffer is not None}


@torch.no_grad()
def _put_back(
    module: nn.Module, training: bool, buffers: dict[str, torch.Tensor | None], values: dict[str, torch.Tensor]
) -> None:
    module.training = training
    module._buffers.clear()
    module._buffers.update(buffers)
    for name, value in values.items():
        buffer = buffers[name]
        if buffer is not None and not buffer.is_meta:
            buffer.copy_(value)


def _stays_in_training(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    quantised = weight is not None and not weight.is_floating_point()
    return quantised or bool(getattr(module, "gradient_checkpointing", False))


@contextmanager
def _random_numbers(model: nn.Module, seed: int) -> Iterator[None]:
    devices = {parameter.device for parameter in model.parameters()} - {torch.device("meta")}
    kinds: dict[str, list[torch.device]] = {}
    for device in devices:
        if device.type != "cpu":
            kinds.setdefault(device.type, []).append(device)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind, own in kinds.items():
            stack.enter_context(torch.random.fork_rng(devices=own, device_type=kind))
        torch.manual_seed(seed)
        yield
