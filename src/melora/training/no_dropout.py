"""Switching off the dropout that a base model brings along."""

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


def disable_dropout(model: nn.Module) -> int:
    """Set every dropout probability of a model to 0, in place; an adapter put in later keeps its own.

    TRL's option of that name changes nn.Dropout modules alone. Many attentions keep their probability as a number
    (attention_dropout, dropout_prob, layerdrop) and hand it to a function, so those are set too.

    Returns:
        How many probabilities above 0 there were.
    """
    found = 0
    for module in model.modules():
        names = ["p"] if isinstance(module, _DropoutNd) else [name for name in vars(module) if "drop" in name]
        for name in names:
            value = getattr(module, name)
            if isinstance(value, float) and value > 0:
                setattr(module, name, 0.0)
                found += 1
    return found
