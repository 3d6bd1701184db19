"""GLUE's MNLI, which has two validation splits: one from the training's genres, one from others."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import Split, read_split
from ..dataspec import DataSpec
from ..places import place_of
from .base import Encoded
from .glue import GlueClassification

MATCHED, MISMATCHED = "validation_matched", "validation_mismatched"


class Mnli(GlueClassification):
    """Does a hypothesis follow from a premise, contradict it, or neither?

    The matched split scores every epoch and chooses the best one; the mismatched split is scored once, at the end.
    """

    name = "glue/mnli"
    columns = ("premise", "hypothesis")
    class_names = ("entailment", "neutral", "contradiction")

    def __init__(self, classes: list[str] | list[int]) -> None:
        super().__init__(classes)
        self._mismatched: Encoded | None = None

    def encode(self, split: Split, tokenizer: Any, spec: DataSpec) -> Encoded:
        """As every task's; the mismatched split is read beside the matched one, so that its faults show at once."""
        if split.name == "validation":
            self._mismatched = None
            if spec.holdout is None and spec.validation == MATCHED and split.path == _path(spec, MATCHED):
                other = read_split("validation", place_of(spec, "validation", MISMATCHED), spec)
                self._mismatched = super().encode(other, tokenizer, spec)
        return super().encode(split, tokenizer, spec)

    def final_scores(self, model: Any, tokenizer: Any, split: Split, spec: DataSpec, batch: int) -> dict[str, Any]:
        if self._mismatched is None:
            return {}
        examples, collate = self._mismatched.examples, self.collator(tokenizer)
        device, was_training, logits = next(model.parameters()).device, model.training, []
        model.eval()
        with torch.inference_mode():
            for start in range(0, len(examples), batch):
                inputs = {name: value.to(device) for name, value in collate(examples[start : start + batch]).items()}
                inputs.pop("labels")
                logits.append(model(**inputs).logits.float().cpu().numpy())
        model.train(was_training)
        labels = np.asarray([example["labels"] for example in examples])
        return {"mismatched": {**self.metrics(np.concatenate(logits), labels), "rows": len(examples)}}


def _path(spec: DataSpec, split: str) -> Path:
    return Path(str(place_of(spec, "validation", split)))
