"""The only file that touches PEFT's registries.

PEFT (0.21) registers methods of its own enum only, so the four tables are filled directly. The type is a str-Enum whose
member equals, hashes and serialises as "MELORA"; PEFT's own enum stays as it is.
"""

import enum
from typing import Any

import peft
from packaging.version import Version
from peft import mapping
from peft.utils import hotswap

OLDEST_PEFT = "0.21.0"


class MeloraPeftType(str, enum.Enum):  # noqa: UP042 - PEFT's own PeftType is a (str, Enum) too, and formats as one
    """What `peft_type` holds in a MELoRA config."""

    MELORA = "MELORA"


def register(config_cls: type[Any], model_cls: type[Any]) -> None:
    """Make PEFT know MELORA: config class, tuner class, parameter prefix, and the config keys that a hotswap compares.

    Doing it twice changes nothing.

    Raises:
        ImportError: PEFT is older than 0.21, the first with the hooks that melora builds on.
    """
    if Version(peft.__version__) < Version(OLDEST_PEFT):
        raise ImportError(
            f"melora needs peft >= {OLDEST_PEFT}, found {peft.__version__}: run `pip install 'peft>=0.21,<0.22'`"
        )
    kind: Any = MeloraPeftType.MELORA  # a str that equals its value is a key as good as PEFT's own enum
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind] = config_cls
    mapping.PEFT_TYPE_TO_TUNER_MAPPING[kind] = model_cls
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING[kind] = model_cls.prefix
    hotswap.CONFIG_KEYS_TO_CHECK[kind] = [
        "n",
        "mixing",
        "permute",
        "use_rslora",
        "lora_dropout",
        "alpha_pattern",
        "n_pattern",
    ]
