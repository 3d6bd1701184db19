"""nn.TransformerEncoderLayer, which in eval mode reads its submodules' weights without calling them.

PyTorch (2.13) then runs one fused kernel on the base weights, and every adapter inside is ignored in silence: a trained
adapter has no effect in inference. That is so for PEFT's LoRA too (0.21). A forward pre-hook on the layer, even one
that does nothing, keeps PyTorch from that path.
"""

from typing import Any

from torch import nn

from .layer import MeloraLayer


def close_fast_path(model: nn.Module) -> None:
    """Make every encoder layer with an adapter inside call its submodules, in eval mode too. Twice changes nothing."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerEncoder) and not _is_closed(module):
            if not any(isinstance(child, MeloraLayer) for child in module.modules()):
                continue
            if isinstance(module, nn.TransformerEncoder):
                if not module.use_nested_tensor:
                    continue  # nothing to close, and nothing to open again
                module.use_nested_tensor = False  # what the encoder makes of padding for the fused kernel alone
            module.register_forward_pre_hook(_does_nothing)


def open_fast_path(model: nn.Module) -> None:
    """Take back what `close_fast_path` did, when no adapter is left."""
    for module in model.modules():
        if _is_closed(module):
            for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _does_nothing]:
                del module._forward_pre_hooks[key]
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = True


def _does_nothing(_module: nn.Module, _args: Any) -> None:
    return


def _is_closed(module: nn.Module) -> bool:
    return _does_nothing in module._forward_pre_hooks.values()
