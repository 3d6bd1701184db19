"""Learning rates of their own: for the factor B (LoRA+), and for the modules that are trained whole."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..errors import MeloraError
from .adapter import adapter_and_head, method_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Trainer

    from .recipe import Recipe
else:
    Trainer = object


class PartRates(Trainer):
    """A mixin in front of a trainer of transformers or TRL.

    The schedule is the same for all parts. A, and what is neither a B nor the head, has training.learning_rate itself.

    Attributes:
        loraplus_lr_ratio: learning rate of B over A's (LoRA+, Hayou et al., ICML 2024, arXiv 2402.12354).
        head_rate_ratio: learning rate of the head over A's.
    """

    loraplus_lr_ratio: float = 1.0
    head_rate_ratio: float = 1.0

    def take_rates(self, recipe: "Recipe") -> None:
        """Use a recipe's ratios."""
        self.loraplus_lr_ratio = recipe.loraplus_lr_ratio
        self.head_rate_ratio = recipe.head_learning_rate_ratio

    def create_optimizer(self, model: Any = None) -> Any:
        """As the Trainer's. With ratios, each of its groups of parameters becomes one for each part that has a rate of
        its own: A first, whose rate is the one that the log shows, then B, then the head; always in this order, so that
        a checkpoint's optimiser fits again."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        ratios = (1.0, self.loraplus_lr_ratio, self.head_rate_ratio)
        if is_new and ratios != (1.0, 1.0, 1.0):
            _split_groups(optimizer, self.model if model is None else model, ratios)
        return optimizer


def factors_b(parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of an adapter's parameters that are the B of a pair of factors A and B: lora_B, melora_B, gralora_B, ...

    Not of an embedding: there A is the one that starts at zero, and reads one row for each token; both factors keep
    training.learning_rate. (peft.optimizers.create_loraplus_optimizer treats LoRA's embeddings apart, too.)
    """
    found = {}
    for name, parameter in parameters.items():
        parts = name.split(".")
        for index, part in enumerate(parts):
            if not part.endswith("_B") or part.endswith("embedding_B"):
                continue
            partner = ".".join([*parts[:index], f"{part.removesuffix('_B')}_A", *parts[index + 1 :]])
            if partner in parameters:
                found[name] = parameter
    return found


def check_rates(recipe: "Recipe", model: "PeftModel") -> None:
    """Check that the model has what the recipe gives a rate of its own.

    Raises:
        MeloraError: loraplus_lr_ratio is set, and the method has no factors A and B to tell apart.
    """
    if recipe.loraplus_lr_ratio != 1.0 and not factors_b(adapter_and_head(model)[0]):
        method = method_of(model.peft_config[model.active_adapter])
        raise MeloraError(
            f"loraplus_lr_ratio: is the rate of B over A's, and adapter.method {method} trains no pair of factors A "
            "and B here (embeddings do not count); remove it, or choose melora or lora"
        )


def _split_groups(optimizer: Any, model: Any, ratios: tuple[float, float, float]) -> None:
    adapter, head = adapter_and_head(model)
    part_of = dict.fromkeys(map(id, head.values()), 2)
    if ratios[1] != 1.0:  # else a checkpoint of before has no group of B's own
        part_of |= dict.fromkeys(map(id, factors_b(adapter).values()), 1)
    groups = []
    for part, ratio in enumerate(ratios):
        for group in optimizer.param_groups:
            members = [parameter for parameter in group["params"] if part_of.get(id(parameter), 0) == part]
            if members:
                groups.append({**group, "params": members, "lr": group["lr"] * ratio})
    optimizer.param_groups[:] = groups
