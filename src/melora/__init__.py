"""MELoRA for Hugging Face PEFT. Importing this package registers the method MELORA with PEFT."""

from .allocation import Allocation, allocate
from .analysis import inspect_adapter
from .calibration import calibrate
from .config import MeloraConfig
from .conversion import export_lora
from .errors import MeloraError
from .layer import MeloraLayer
from .loading import load_adapter
from .lora_ga import preprocess_lora_ga
from .model import MeloraModel
from .registration import register

__version__ = "0.1.0"

__all__ = [
    "Allocation",
    "MeloraConfig",
    "MeloraError",
    "MeloraLayer",
    "MeloraModel",
    "allocate",
    "calibrate",
    "export_lora",
    "inspect_adapter",
    "load_adapter",
    "preprocess_lora_ga",
]

register(MeloraConfig, MeloraModel)
