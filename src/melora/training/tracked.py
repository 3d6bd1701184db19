"""What trackers (TensorBoard, W&B, ...) get of the adapter beside the Trainer's own values."""

from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from .adapter import adapter_and_head
from .moved import module_of
from .plan import plan_modules
from .sharded import whole

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object


class Tracked(Trainer):
    """A mixin in front of transformers' Trainer: where trackers listen, each event with a loss carries the norms."""

    _facts_told = False

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.args.report_to and "loss" in logs:
            facts = {} if self._facts_told else adapter_facts(self.model)
            self._facts_told = True
            logs = {**logs, **facts, **adapter_norms(self.model)}
        super().log(logs, *args, **kwargs)


def adapter_facts(model: PeftModel) -> dict[str, float]:
    """n, r, equivalent rank and parameters of the adapter; of modules that differ, the least and the most."""
    modules = plan_modules(model)
    facts: dict[str, float] = {"adapter_parameters": sum(module.parameters for module in modules)}
    for name in ("n", "r", "equivalent_rank"):
        values = [value for module in modules if (value := getattr(module, name)) is not None]
        if values and min(values) == max(values):
            facts[f"adapter_{name}"] = values[0]
        elif values:
            facts.update({f"adapter_{name}_min": min(values), f"adapter_{name}_max": max(values)})
    return facts


@torch.no_grad()
def adapter_norms(model: PeftModel) -> dict[str, float]:
    """Frobenius norms over all modules: of A, of B, and of the update dW, as far as the method has them.

    ||B_i A_i||^2 is the trace of (A_i A_i^T)(B_i^T B_i), which are r x r: no weight-sized matrix is made.
    """
    parameters = {name: value.float() for name, value in whole(adapter_and_head(model)[0]).items()}
    squares = {"A": 0.0, "B": 0.0, "dW": 0.0}
    for name, A in parameters.items():
        B = parameters.get(name.replace("_A.", "_B."))
        if "_A." not in name or B is None:
            continue
        squares["A"] += float(A.square().sum())
        squares["B"] += float(B.square().sum())
        if A.dim() not in (2, 3) or A.dim() != B.dim() or A.shape[-2] != B.shape[-1]:
            squares["dW"] = float("nan")  # convolutions and embeddings lay their factors out in other ways
            continue
        layer: Any = model.get_base_model().get_submodule(module_of(name))
        scaling = next(iter(layer.scaling.values()))
        squares["dW"] += scaling**2 * float(((A @ A.mT) * (B.mT @ B)).sum())
    return {f"adapter_norm_{name}": value**0.5 for name, value in squares.items() if value == value and squares["A"]}
