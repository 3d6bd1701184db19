"""A learning rate of its own for the modules that are trained whole."""

from typing import TYPE_CHECKING, Any

from .adapter import adapter_and_head

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object


class HeadRate(Trainer):
    """A mixin in front of a trainer of transformers or TRL.

    Attributes:
        head_rate_ratio: learning rate of the head over the adapter's; the schedule is the same for both.
    """

    head_rate_ratio: float = 1.0

    def create_optimizer(self, model: Any = None) -> Any:
        """As the Trainer's. With a ratio, each of its groups of parameters becomes one for the adapter and one for the
        head, in this order, so that a checkpoint's optimiser fits again."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.head_rate_ratio != 1.0:
            _split_groups(optimizer, self.model if model is None else model, self.head_rate_ratio)
        return optimizer


def _split_groups(optimizer: Any, model: Any, ratio: float) -> None:
    head = {id(parameter) for parameter in adapter_and_head(model)[1].values()}
    groups = []
    for of_head in (False, True):
        for group in optimizer.param_groups:
            members = [parameter for parameter in group["params"] if (id(parameter) in head) == of_head]
            if members:
                rate = group["lr"] * (ratio if of_head else 1.0)
                groups.append({**group, "params": members, "lr": rate})
    optimizer.param_groups[:] = groups
