"""Mixed batches: each row of a batch through the adapter that `adapter_names` gives for it, as PEFT's LoRA does."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from .errors import MeloraError
from .layer import MeloraLayer


@contextmanager
def route_by_name(tuner: nn.Module, adapter_names: list[str] | None, num_beams: int | None = None) -> Iterator[None]:
    """While open, every adapted layer of `tuner` gets `adapter_names` in its forward call.

    Args:
        tuner: the MeloraModel, in eval mode.
        adapter_names: one name a row of the batch, "__base__" for none; None changes nothing.
        num_beams: of the beam search that is about to run, which repeats each row that often. The encoder of an
            encoder-decoder model still sees the rows once.

    Raises:
        MeloraError: the model is in training mode, or no layer has an adapter of a given name.
    """
    if adapter_names is None:
        yield
        return
    layers = list(_layers(tuner))
    _check(tuner, layers, adapter_names)
    names = list(adapter_names)
    beams = [name for name in names for _ in range(num_beams)] if num_beams and num_beams > 1 else names
    encoder = _encoder(tuner.model)
    inside_encoder = {id(module) for module in _layers(encoder)} if encoder is not None else set()
    with ExitStack() as stack:
        for module in layers:
            rows = names if id(module) in inside_encoder else beams
            stack.callback(_pass_names(module, rows).remove)
        yield


def _layers(module: nn.Module, seen: set[int] | None = None) -> Iterator[nn.Module]:
    """The modules that take adapter_names, each once, as nn.Module.modules() would give them.

    It stops at an adapted layer's base: hundreds of adapters have thousands of modules of their own.
    """
    seen = set() if seen is None else seen
    if id(module) in seen:
        return
    seen.add(id(module))
    if isinstance(module, MeloraLayer | AuxiliaryTrainingWrapper):
        yield module
    for child in [module.base_layer] if isinstance(module, MeloraLayer) else module.children():
        yield from _layers(child, seen)


def _pass_names(module: nn.Module, names: list[str]) -> Any:
    def add(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "adapter_names": names}

    return module.register_forward_pre_hook(add, with_kwargs=True)


def _check(tuner: nn.Module, layers: list[nn.Module], adapter_names: list[str]) -> None:
    if tuner.training:
        raise MeloraError("Cannot pass `adapter_names` when the model is in training mode: call model.eval() first")
    known = {name for module in layers if isinstance(module, MeloraLayer) for name in module.scaling}
    unknown = sorted(set(adapter_names) - known - {"__base__"})
    if unknown:
        raise MeloraError(
            f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}; loaded: {', '.join(sorted(known))}"
        )


def _encoder(model: Any) -> nn.Module | None:
    """The encoder of an encoder-decoder model; transformers 5 answers with the model itself where there is none."""
    if not hasattr(model, "get_encoder"):
        return None
    encoder: nn.Module = model.get_encoder()
    return None if encoder is model else encoder
