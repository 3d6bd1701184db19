"""Whether a base layer has what a start of A and B is read off: a weight that can be read, or its gradient."""

import torch
from peft.utils.quantization_utils import QuantizationBackend
from torch import nn

from .adapted import AdaptedLayer
from .errors import MeloraError
from .initial import gradient_of
from .linear import Linear
from .merging import is_repacked


def check_kind(module: str, base: nn.Module, cls: type[AdaptedLayer], init_weights: bool | str) -> None:
    """Check that there are gradients for this kind of layer, where A and B start from them.

    Args:
        module: its name, for the message.
        base: the layer.
        cls: the class that will adapt it.
        init_weights: the config's.

    Raises:
        MeloraError: there are none.
    """
    if init_weights == "lora_ga" and not issubclass(cls, Linear):
        raise MeloraError(
            f"{module}: init_weights='lora_ga' takes gradients of linear layers alone, and this is a "
            f"{type(base).__name__}; name it in exclude_modules, or use init_weights='pissa'"
        )


def check_source(module: str, base: nn.Module, backend: QuantizationBackend | None, init_weights: bool | str) -> None:
    """Check a base layer before an adapter starts from its weight, or for "lora_ga" from its gradient.

    A base without weights (on the meta device) passes: an adapter on it has shapes only, and its values come later.

    Args:
        module: its name, for the message.
        base: the layer.
        backend: of a quantised layer.
        init_weights: of the kinds that `initial.has_start` knows.

    Raises:
        MeloraError: its weight can't be read or is not finite, or its gradient is not there.
    """
    parameters = list(base.parameters())
    if any(parameter.is_meta for parameter in parameters):
        return
    if init_weights == "lora_ga":
        if gradient_of(base) is None:
            raise MeloraError(
                f"{module}: init_weights='lora_ga' starts from the gradient of the weight, and there is none; call "
                "melora.preprocess_lora_ga(model, config, batches) with the base model right before the adapter is made"
            )
    elif backend is not None:
        if not backend.supports_merge or is_repacked(base):
            raise MeloraError(
                f"{module}: init_weights={init_weights!r} reads the weight, which can't be read back from this layer "
                f"quantised by {backend.backend_name}; load the model anew (bitsandbytes repacks 4 bits on the CPU in "
                "the first forward call), without quantisation, or use init_weights=True"
            )
    elif not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise MeloraError(
            f"{module}: init_weights={init_weights!r} reads the weight, and it holds NaN or infinity; load an intact "
            "checkpoint"
        )
