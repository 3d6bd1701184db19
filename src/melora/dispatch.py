"""From a base layer to the class of its adapter: the one place that knows them all."""

from peft.utils.quantization_utils import QuantizationBackend
from torch import nn
from transformers.pytorch_utils import Conv1D

from .adapted import AdaptedLayer
from .attention import MultiheadAttention
from .conv import Conv1d, Conv2d, Conv3d
from .embedding import Embedding
from .errors import MeloraError
from .linear import Linear

_CLASSES: dict[type[nn.Module], type[AdaptedLayer]] = {
    nn.Linear: Linear,
    Conv1D: Linear,
    nn.Embedding: Embedding,
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
    nn.MultiheadAttention: MultiheadAttention,
}


def layer_class(name: str, base: nn.Module, backend: QuantizationBackend | None) -> type[AdaptedLayer]:
    """The class that adapts `base`, called `name`; subclasses of a known type count as that type, as in LoRA.

    Raises:
        MeloraError: no class does.
    """
    if backend is not None and backend.layer_type == "linear":
        return Linear
    for base_class, adapted in _CLASSES.items():
        if isinstance(base, base_class):
            return adapted
    raise MeloraError(
        f"Target module {name} is a {type(base).__name__}, which is not supported: melora adapts "
        f"{', '.join(base_class.__name__ for base_class in _CLASSES)} and PEFT's quantised linear layers; take it out "
        "of target_modules or name it in exclude_modules"
    )
