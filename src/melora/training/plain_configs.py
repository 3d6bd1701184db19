"""What a recipe may say of the methods without an adapter (plain_methods.py)."""

import enum
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peft import PeftConfig
from peft.utils.constants import DUMMY_TARGET_MODULES


class PlainType(str, enum.Enum):  # noqa: UP042 - as MeloraPeftType
    """What `peft_type` holds in the configs of these methods."""

    HEAD = "HEAD"
    BIAS = "BIAS"
    FULL = "FULL"


@dataclass
class PlainConfig(PeftConfig):
    """What the three methods share.

    Args:
        modules_to_save: modules to train whole, as new ones such as a classifier are.
    """

    kind: ClassVar[PlainType]

    modules_to_save: list[str] | None = field(default=None, metadata={"help": "modules to train and save whole"})

    def __post_init__(self) -> None:
        super().__post_init__()
        kind: Any = self.kind
        self.peft_type = kind

    def trains(self, name: str) -> bool:
        """Whether a target's own parameter of this name is trained."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """The fields, sets as sorted lists, so that a saved file does not depend on the hash seed."""
        return {key: sorted(value) if isinstance(value, set) else value for key, value in super().to_dict().items()}


@dataclass
class HeadConfig(PlainConfig):
    """Only the new modules are trained; nothing of the base model."""

    kind = PlainType.HEAD
    target_modules: ClassVar[str] = DUMMY_TARGET_MODULES  # PEFT's word for none


@dataclass
class BiasConfig(PlainConfig):
    """The biases of the base model are trained, and the new modules.

    Args:
        target_modules: whose biases: names, a regular expression, or all-linear; None for every module's.
        exclude_modules: names or a regular expression to leave alone.
    """

    kind = PlainType.BIAS

    target_modules: set[str] | list[str] | str | None = field(
        default=None, metadata={"help": "modules whose biases are trained; None for all"}
    )
    exclude_modules: set[str] | list[str] | str | None = field(
        default=None, metadata={"help": "module names or a regular expression to leave alone"}
    )

    def trains(self, name: str) -> bool:
        return name.endswith("bias")


@dataclass
class FullConfig(PlainConfig):
    """Every weight of the base model is trained, and the new modules."""

    kind = PlainType.FULL
    target_modules: ClassVar[None] = None


def shown_targets(targets: Any) -> Any:
    """target_modules as a recipe writes them: PEFT makes a set of a list, whose order changes from run to run."""
    return sorted(targets) if isinstance(targets, set) else targets
