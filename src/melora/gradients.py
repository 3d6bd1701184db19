"""The gradient of a loss with respect to the weights of chosen linear layers, frozen and quantised ones too.

What LoRA-GA (Wang et al., 2024, arXiv 2407.05000) and RaLoRA (ICLR 2026) measure before training: from a layer's input
x and the gradient g of its output, the gradient of its weight is g^T x, summed over the tokens. Autograd itself gives
none for a frozen or quantised weight.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.quantization_utils import get_quantization_kwargs, resolve_quantization_backend
from torch import nn

from .dispatch import layer_class
from .errors import MeloraError
from .layer import MeloraLayer
from .linear import Linear
from .undisturbed import undisturbed

_SHOWN = 5


def weight_gradients(
    model: nn.Module,
    modules: Mapping[str, nn.Module] | Iterable[str],
    batches: Iterable[Any],
    *,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """The mean over `batches` of the gradient of the loss with respect to the weight of each module.

    Nothing is trained, and the model comes out as it was, after an error too (undisturbed.py): requires_grad, grads,
    hooks, mode, buffers, random numbers. It runs without dropout, and with activation checkpointing where the model
    has that switched on. A module that is called several times, or again when a checkpoint is recomputed, counts as in
    autograd; of a weight that modules share under two owners (a tied embedding), each module's own use. Costs a
    forward and a backward pass for each batch, one product g^T x for each call, and memory for one matrix for each
    module beside the inputs of all of them.

    Args:
        model: base model, or adapted model, whose weights are then the base's (where nothing is merged).
        modules: linear layers, as name -> module or as names of the model's own: nn.Linear, transformers' Conv1D,
            PEFT's quantised linear layers, or adapter layers on these.
        batches: what `loss` takes; mappings are moved to the model's device.
        loss: (model, batch) -> a scalar; by default model(**batch).loss.
        device: where the matrices are kept, "cpu" to save the accelerator's memory; by default where they are made.
        seed: of torch's random numbers during the pass, those that draw the batches included.

    Returns:
        name -> (d_out, d_in) whatever the base's own layout, in the order of `modules`; fp32, or fp64 of fp64 layers.

    Raises:
        MeloraError: a module is not there or no linear layer, there are no batches, a batch has no finite scalar loss,
            a gradient is not finite (named with its module and batch), or none reached a module.
    """
    chosen = _chosen(model, modules)
    home = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    sums = {name: _Sum(device) for name in chosen}
    handles: list[Any] = []
    count = 0
    try:
        with undisturbed(model, seed):
            for name, module in chosen.items():
                handles.append(module.register_forward_pre_hook(_start_graph, with_kwargs=True))
                handles.append(module.register_forward_hook(sums[name].watch, with_kwargs=True))
            embeddings = _embeddings(model)
            if embeddings is not None:
                handles.append(embeddings.register_forward_hook(_requires_grad))
            for batch in batches:
                count += 1
                value = _loss(model, _on(home, batch), loss, count)
                if value.requires_grad:
                    value.backward()
                for name, total in sums.items():
                    total.check(name, count)
    finally:
        for handle in handles:
            handle.remove()
    if count == 0:
        raise MeloraError("weight_gradients: there are no batches; give at least one (a generator runs only once)")
    _check_reached(sums)
    return {name: cast(torch.Tensor, total.value) / count for name, total in sums.items()}


class _Held(torch.autograd.Function):
    """Keeps a tensor as autograd keeps them: with activation checkpointing it is dropped, and computed again."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return anchor.new_empty(0)


class _Sum:
    """The gradient of one module's weight so far: None until one came."""

    def __init__(self, device: torch.device | str | None) -> None:
        self.value: torch.Tensor | None = None
        self._device = device

    def watch(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A forward hook: pairs this call's input with the gradient of this call's output."""
        y = output[0] if isinstance(output, tuple) else output
        if not y.requires_grad:  # a re-entrant checkpoint's first run, which is without gradients
            return
        x = args[0] if args else next(iter(kwargs.values()))
        # A hook that closed over x would keep what checkpointing is there to drop.
        held = [_Held.apply(torch.empty(0, requires_grad=True), x.detach())]
        y.register_hook(lambda g: self._add(g, held.pop().grad_fn.saved_tensors[0]))

    @torch.no_grad()
    def _add(self, g: torch.Tensor, x: torch.Tensor) -> None:
        if not g.numel():
            return  # an expert that no token reached
        dtype = torch.float64 if g.dtype == torch.float64 else torch.float32
        with torch.autocast(g.device.type, enabled=False):
            product = g.reshape(-1, g.shape[-1]).to(dtype).T @ x.reshape(-1, x.shape[-1]).to(dtype)
        product = product if self._device is None else product.to(self._device)
        self.value = product if self.value is None else self.value.add_(product)

    def check(self, name: str, batch: int) -> None:
        if self.value is not None and not torch.isfinite(self.value).all():
            raise MeloraError(
                f"{name}: the gradient of its weight is not finite in batch {batch}; look for rows that overflow "
                "there, or load the model in bfloat16 or float32 instead of float16"
            )


def _chosen(model: nn.Module, modules: Mapping[str, nn.Module] | Iterable[str]) -> dict[str, nn.Module]:
    """The modules by name, each a linear layer with a weight."""
    known = dict(model.named_modules(remove_duplicate=False))
    if isinstance(modules, Mapping):
        chosen = dict(modules)
    else:
        names = [modules] if isinstance(modules, str) else list(modules)
        missing = [name for name in names if name not in known]
        if missing:
            raise MeloraError(f"the model has no module {missing[0]!r}; give names as model.named_modules() has them")
        chosen = {name: known[name] for name in names}
    if not chosen:
        raise MeloraError("weight_gradients: no module is named; give at least one linear layer")
    check_linear(model, chosen)
    for name, module in chosen.items():
        if any(parameter.is_meta for parameter in module.parameters()):
            raise MeloraError(f"{name}: has no weights (they are on the meta device); load the model with its weights")
    return chosen


def check_linear(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Check that gradients of these modules' weights can be taken: that they are linear layers, or adapted ones.

    Raises:
        MeloraError: one is not; the message names it.
    """
    quantization = get_quantization_kwargs(model)
    for name, module in modules.items():
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        kind = layer_class(name, base, resolve_quantization_backend(base, **quantization))
        if kind is not Linear or (isinstance(module, MeloraLayer) and not isinstance(module, Linear)):
            raise MeloraError(
                f"{name} is a {type(base).__name__}, and gradients are taken of linear layers alone; leave it out by "
                "exclude_modules, or give it numbers, n in n_pattern, without a budget"
            )


def _start_graph(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A forward pre-hook: lets the graph begin at this input where nothing before it requires a gradient."""
    if not torch.is_grad_enabled():
        return None
    if args:
        return (_requires_grad(None, None, args[0]), *args[1:]), kwargs
    first = next(iter(kwargs))
    return args, {**kwargs, first: _requires_grad(None, None, kwargs[first])}


def _requires_grad(_module: Any, _args: Any, x: Any) -> Any:
    """x, or where it requires no gradient a copy that does (a leaf itself could not be changed in place)."""
    if not isinstance(x, torch.Tensor) or x.requires_grad or not x.is_floating_point():
        return x
    return x.detach().requires_grad_(True).clone()


def _embeddings(model: nn.Module) -> nn.Module | None:
    """Where transformers' models begin: a re-entrant checkpoint loses the gradient unless its input requires one."""
    get = getattr(model, "get_input_embeddings", None)
    try:
        found = None if get is None else get()
    except NotImplementedError:  # transformers' answer where a model has none
        return None
    return found if isinstance(found, nn.Module) else None


def _loss(model: nn.Module, batch: Any, loss: Callable[[Any, Any], torch.Tensor] | None, count: int) -> torch.Tensor:
    if loss is not None:
        value: Any = loss(model, batch)
    else:
        output = model(**batch)
        value = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(value, torch.Tensor):
        raise MeloraError(
            f"batch {count}: the model's output has no loss; put labels into the batches, or pass loss=(model, batch) "
            "-> scalar"
        )
    if value.numel() != 1 or not torch.isfinite(value).all():
        told = f"{value.item():g}" if value.numel() == 1 else f"of shape {list(value.shape)}"
        raise MeloraError(f"batch {count}: the loss is {told}; it must be one finite number: look at that batch's rows")
    return value


def _on(device: torch.device, batch: Any) -> Any:
    if not isinstance(batch, Mapping):
        return batch
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def _check_reached(sums: Mapping[str, _Sum]) -> None:
    unreached = [name for name, total in sums.items() if total.value is None]
    if unreached:
        more = f" and {len(unreached) - _SHOWN} more" if len(unreached) > _SHOWN else ""
        raise MeloraError(
            f"no gradient reached {', '.join(unreached[:_SHOWN])}{more}: the forward pass does not use it, or only for "
            "rows that these batches do not have (experts), or its output is detached (activation checkpointing with "
            "use_reentrant=true does that); leave it out by exclude_modules, or give more batches"
        )
