"""What a trainer needs beyond its library's own for several ranks to give what one process gives."""

from typing import TYPE_CHECKING, Any

from .fsdp import give_storage, name_layers
from .sharded import reshard, whole_state

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object


class Ranked(Trainer):
    """A mixin in front of transformers' Trainer or a subclass of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled:
            give_storage(self.model)
            name_layers(self.model, self.accelerator.state.fsdp_plugin)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's, but of a sharded model only the adapter is gathered, not the frozen base with it."""
        state = whole_state(self.model)
        if state is None:
            super().save_model(output_dir, _internal_call)
        else:
            self._save(output_dir, state_dict=state)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        reshard(self.model)
        super()._save_checkpoint(model, trial)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """As the Trainer's, but the last batch's loss is that of the rows that were asked for.

        Accelerate fills the last batch of the ranks up with rows from the start. The Trainer drops their predictions,
        so scores are exact, but the loss of a batch is one number, with the repeated rows in it.
        """
        step: tuple[Any, Any, Any] = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        state = self.accelerator.gradient_state
        rows = len(next(iter(inputs.values())))
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return step
        if state.remainder % rows == 0:
            return step  # every rank's rows are all asked for, or none is
        wanted = min(max(state.remainder - self.args.process_index * rows, 0), rows)
        # All ranks go through the model once more, the whole ones too: a sharded model's forward is a meeting.
        kept = {key: value[: wanted or rows] if len(value) == rows else value for key, value in inputs.items()}
        loss = super().prediction_step(model, kept, True, ignore_keys)[0]
        return loss, step[1], step[2]
