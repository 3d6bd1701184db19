"""Naming the rows of a batch, so that whoever reads of a bad one can look at it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

_SHOWN_ROWS, _SHOWN_CHARACTERS = 8, 60


@dataclass(frozen=True)
class Batch:
    """What is kept of a batch until its step is over: references, no copies.

    Attributes:
        ids: token ids, (rows, length), or None if the model takes something else.
        mask: 1 where `ids` is no padding, the same shape; None if nothing is padded.
        loss: of the batch, as the optimiser's step counts it, a scalar still on its device.
    """

    ids: torch.Tensor | None
    mask: torch.Tensor | None
    loss: torch.Tensor

    @classmethod
    def of(cls, inputs: Mapping[str, Any], loss: torch.Tensor) -> "Batch":
        ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        fits = isinstance(ids, torch.Tensor) and isinstance(mask, torch.Tensor) and mask.shape == ids.shape
        return cls(ids if isinstance(ids, torch.Tensor) else None, mask if fits else None, loss.detach())

    def rows(self) -> list[tuple[int, ...]]:
        """Each row's token ids without padding."""
        if self.ids is None:
            return []
        masks = torch.ones_like(self.ids) if self.mask is None else self.mask
        return [tuple(row[keep.bool()].tolist()) for row, keep in zip(self.ids, masks, strict=True)]


def describe(batches: Iterable[Batch], dataset: Any, tokenizer: Any) -> str:
    """Where the batches' rows are in the training data, and how the first one starts.

    Rows are found by their tokens, whatever sampler drew them. They are counted from 1, as prepared for training.

    Args:
        batches: what to name.
        dataset: the training rows, mappings with input_ids.
        tokenizer: to show the first row's text; None shows none.
    """
    rows = [row for batch in batches for row in batch.rows()]
    if not rows:
        return "a batch without token ids"
    wanted, found = set(rows), set[int]()
    for number, example in enumerate(dataset, 1):
        ids = example.get("input_ids") if isinstance(example, Mapping) else None
        if ids is not None and tuple(ids.tolist() if hasattr(ids, "tolist") else ids) in wanted:
            found.add(number)
    numbers = sorted(found)
    more = f" and {len(numbers) - _SHOWN_ROWS} more" if len(numbers) > _SHOWN_ROWS else ""
    where = f"training rows {', '.join(map(str, numbers[:_SHOWN_ROWS]))}{more}" if numbers else f"{len(rows)} rows"
    if tokenizer is None:
        return where
    first = rows[0]
    if numbers:
        first = tuple(dataset[numbers[0] - 1]["input_ids"])
    text = " ".join(str(tokenizer.decode(list(first[:64]), skip_special_tokens=True)).split())
    return f"{where} (the first reads {text[:_SHOWN_CHARACTERS]!r})"
