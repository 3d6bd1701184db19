"""What AdaLoRA asks of a training loop, and PEFT 0.21 leaves to it: its schedule, its allocation after each step."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import AdaLoraConfig, AdaLoraModel, PeftModel
from safetensors.torch import load_file, save_file

from ..errors import MeloraError

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object

LATER = 2**31  # stands for total_step until the run's length is known
IMPORTANCE = "adalora.safetensors"
_SUMS = ("exp_avg_ipt", "exp_avg_unc")


class Allocating(Trainer):
    """A mixin in front of a trainer of transformers or TRL: an AdaLoRA's ranks are allocated anew after each step.

    What is saved on the way has all ranks, those that were taken away as zeros: a smaller file would not fit the model
    that goes on. The importance of each number, which decides over the ranks, is kept with the optimiser.
    """

    def take_schedule(self, steps: int) -> None:
        """Use the run's number of optimiser steps; see `check_schedule`."""
        if (config := _config(self.model)) is not None:
            config.total_step = check_schedule(config, steps)

    def _took_step(self, optimizer: Any) -> None:
        super()._took_step(optimizer)
        layers = adalora(self.model)
        if layers is None:
            return
        config = _config(self.model)
        # PEFT looks for the ranks that it chose in the config, where saving would find them and leave rows out.
        config.rank_pattern = getattr(self, "_chosen_ranks", None)
        layers.update_and_allocate(self.state.global_step + 1)
        self._chosen_ranks, config.rank_pattern = config.rank_pattern, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        with without_penalty(self.model):
            return super().evaluation_loop(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        layers = adalora(self.model)
        if layers is not None and self.args.should_save:
            sums = {
                f"{kind}/{name}": value.contiguous()
                for kind in _SUMS
                for name, value in getattr(layers.rankallocator, kind).items()
            }
            save_file(sums, Path(output_dir) / IMPORTANCE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        layers = adalora(self.model)
        if layers is None or checkpoint is None:
            return
        for key, value in load_file(Path(checkpoint) / IMPORTANCE, device=str(self.args.device)).items():
            kind, name = key.split("/", 1)
            getattr(layers.rankallocator, kind)[name] = value
            layers.rankallocator.ipt.setdefault(name, torch.zeros_like(value))  # written anew in each step
        self._chosen_ranks = _ranks_left(layers)  # the checkpoint's weights are in the model by now


def adalora(model: Any) -> AdaLoraModel | None:
    """The model's AdaLoRA; None of another method."""
    layers = getattr(model, "base_model", None)
    return layers if isinstance(layers, AdaLoraModel) else None


def check_schedule(config: AdaLoraConfig, steps: int) -> int:
    """The total_step of a run: the recipe's own, or the number of its steps.

    Raises:
        MeloraError: between tinit and tfinal no step is left to take ranks away in.
    """
    total = config.total_step if config.total_step not in (None, LATER) else steps
    if config.tinit >= total - config.tfinal:
        raise MeloraError(
            f"adapter.tinit, adapter.tfinal: {config.tinit} and {config.tfinal} steps leave none of {total} between "
            "them, in which AdaLoRA takes ranks away; lower them or train for longer"
        )
    return total


def check_run(model: PeftModel, steps: int) -> None:
    """Check an AdaLoRA's schedule before its run; anything else passes."""
    if (config := _config(model)) is not None:
        check_schedule(config, steps)


def keep_chosen_ranks(model: PeftModel) -> None:
    """Before the adapter is saved for good: leave out the ranks that are zero in an AdaLoRA's singular values."""
    if (layers := adalora(model)) is not None:
        _config(model).rank_pattern = _ranks_left(layers)


def ready_to_score(model: PeftModel) -> PeftModel:
    """A loaded AdaLoRA that takes labels: PEFT reads an attribute there that it sets for training only."""
    layers = adalora(model)
    if layers is not None and not hasattr(layers, "trainable_adapter_name"):
        layers.trainable_adapter_name = model.active_adapter
    return model


@contextmanager
def without_penalty(model: Any) -> Iterator[None]:
    """Within it, the loss of an AdaLoRA has no penalty for factors that are not orthogonal."""
    config = _config(model)
    if config is None:
        yield
        return
    weight, config.orth_reg_weight = config.orth_reg_weight, 0.0
    try:
        yield
    finally:
        config.orth_reg_weight = weight


def _ranks_left(layers: AdaLoraModel) -> dict[str, list[bool]]:
    """Which ranks of each module are not zero, by the name of its singular values, as PEFT's rank_pattern has it."""
    singular = ((name, value) for name, value in layers.model.named_parameters() if ".lora_E." in name)
    return {name: (value.view(-1) != 0).tolist() for name, value in singular}


def _config(model: Any) -> Any:
    layers = adalora(model)
    return None if layers is None else layers.peft_config[model.active_adapter]
