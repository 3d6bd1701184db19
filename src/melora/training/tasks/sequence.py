"""What classification and regression of one text or a pair share."""

from abc import abstractmethod
from typing import Any

import numpy as np

from ..data import Split
from ..recipe import DataSpec
from .base import Encoded, Task


class SequenceTask(Task):
    """One label a row, predicted by AutoModelForSequenceClassification."""

    peft_type = "SEQ_CLS"
    auto_class = "AutoModelForSequenceClassification"
    needs_pad_in_config = True

    @abstractmethod
    def targets(self, split: Split) -> list[int] | list[float]:
        """The labels as the model gets them: class indexes, or standardised numbers.

        Raises:
            MeloraError: a label that the training labels don't allow, with its row.
        """

    def encode(self, split: Split, tokenizer: Any, spec: DataSpec) -> Encoded:
        targets = self.targets(split)
        columns = [list(column) for column in zip(*split.texts, strict=True)]
        whole = tokenizer(*columns, truncation=False, verbose=False)["input_ids"]
        cut = sum(len(ids) > spec.max_length for ids in whole)
        encoded = tokenizer(*columns, truncation=True, max_length=spec.max_length)
        names = list(encoded)
        rows = zip(*(encoded[name] for name in names), targets, strict=True)
        return Encoded([dict(zip((*names, "labels"), row, strict=True)) for row in rows], cut)

    def usage_lines(self, spec: DataSpec) -> list[str]:
        return ['logits = model(**tokenizer("a text", return_tensors="pt")).logits', self.prediction_line()]

    @abstractmethod
    def prediction_line(self) -> str:
        """Python that turns `logits` of one row into a prediction."""

    def collator(self, tokenizer: Any) -> Any:
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer)


def finite(value: float) -> float:
    """A score as a finite float: a correlation is undefined (NaN) for constant predictions, and counts as 0 here."""
    return float(value) if np.isfinite(value) else 0.0
