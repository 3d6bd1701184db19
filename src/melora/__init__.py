"""MELoRA for Hugging Face PEFT. Importing this package registers the method MELORA with PEFT."""

from .config import MeloraConfig
from .errors import MeloraError
from .layer import MeloraLayer
from .loading import load_adapter
from .model import MeloraModel
from .registration import register

__version__ = "0.1.0"

__all__ = ["MeloraConfig", "MeloraError", "MeloraLayer", "MeloraModel", "load_adapter"]

register(MeloraConfig, MeloraModel)
