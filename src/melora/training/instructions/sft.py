"""TRL's SFTTrainer with melora's guards, and held-out loss that is exact: nats per token, whatever the batches."""

from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from trl.trainer.sft_trainer import SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from ..trainer import AdapterTrainer

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object


class TokenLosses(Trainer):
    """A mixin whose predictions are each row's loss, from which every average follows; no logits are kept."""

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """(None, sums of losses in nats of shape (rows, 1), counts of learned tokens of shape (rows,))."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**inputs, fused_lm_head=True)
        return None, -output.log_probs.float().sum(dim=1, keepdim=True), output.label_mask.sum(dim=1)


class SftAdapterTrainer(TokenLosses, AdapterTrainer, SFTTrainer):
    """SFTTrainer on rows that are token ids and labels already; packed rows have seq_lengths as well."""

    data_collator: Any

    def __init__(
        self, *, data_collator: Any, args: Any, train_dataset: Any, eval_dataset: Any = None, **kwargs: Any
    ) -> None:
        self.row_collator = data_collator
        flat = args.packing or args.padding_free
        super().__init__(
            args=args,
            data_collator=None if flat else data_collator,  # SFTTrainer makes its own for flat batches
            train_dataset=Dataset.from_list(train_dataset),
            eval_dataset=None if eval_dataset is None else Dataset.from_list(eval_dataset),
            **kwargs,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Rows one by one also where training packs them: a row's loss is its own."""
        training, self.data_collator = self.data_collator, self.row_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training

    def own_progress(self) -> dict[str, Any]:
        """The means that SFTTrainer (TRL 1.16) adds to the next entry of the log, and its count of tokens."""
        return {"means": dict(self._metrics["train"]), "tokens": self._total_train_tokens}

    def load_own_progress(self, values: dict[str, Any]) -> None:
        self._metrics["train"].update(values["means"])
        self._total_train_tokens = values["tokens"]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """melora writes its own card, once the run is over; SFTTrainer would at every checkpoint."""


class TokenLossTrainer(TokenLosses, AdapterTrainer):
    """Scores a model without training it."""

    def __init__(self, *, model: Any, **kwargs: Any) -> None:
        add_fused_lm_head(model.get_base_model() if hasattr(model, "get_base_model") else model)
        super().__init__(model=model, **kwargs)
