"""Answers by greedy generation, in the prompt format that was trained, and their score."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from ...errors import MeloraError
from ..data import Split
from .answers import final_number, same_number
from .encoding import leading_ids, prompt_ids
from .formats import prompt
from .spec import InstructionData

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answers:
    """Generated texts, in the order of the rows.

    Attributes:
        texts: without prompt and special tokens.
        unfinished: how many stopped at the limit of tokens instead of the end token.
    """

    texts: list[str]
    unfinished: int


def exact_match(model: Any, tokenizer: Any, split: Split, spec: InstructionData, batch: int) -> dict[str, Any]:
    """Answer the first `spec.answer_rows` rows and compare the final numbers.

    Args:
        model: base model with its adapter, in evaluation mode or not; it is left as it was.
        tokenizer: its tokenizer.
        split: rows with the right answers.
        spec: prompt format, rows and tokens.
        batch: rows at a time.

    Returns:
        exact_match (a share), correct, rows, unfinished, and answer_tokens.
    """
    rows = split.labels[: spec.answer_rows]
    texts = [prompt(row, spec, tokenizer, split.row(index)) for index, row in enumerate(rows)]
    answers = answer(model, tokenizer, texts, max_new_tokens=spec.answer_tokens, batch=batch)
    correct = sum(same_number(given, row.output) for given, row in zip(answers.texts, rows, strict=True))
    return {
        "answers": spec.answers,
        "exact_match": correct / len(rows),
        "correct": correct,
        "rows": len(rows),
        "unfinished": answers.unfinished,
        "answer_tokens": spec.answer_tokens,
    }


def check_answers(split: Split, spec: InstructionData) -> None:
    """Raise a MeloraError if a row that is to be answered has no final number to compare with."""
    for index, row in enumerate(split.labels[: spec.answer_rows] if spec.answers else []):
        if final_number(row.output) is None:
            raise MeloraError(
                f"{split.row(index)}: its answer ends in no number, which data.answers={spec.answers} compares; remove "
                "data.answers"
            )


def answer(
    model: Any,
    tokenizer: Any,
    prompts: list[str],
    *,
    max_new_tokens: int,
    batch: int,
    on_batch: Callable[[int], None] | None = None,
) -> Answers:
    """Continue every prompt greedily until the end token.

    Prompts are padded on the left and taken longest first, so that memory runs out at once or never.
    """
    lead = leading_ids(tokenizer)
    encoded = [prompt_ids(text, tokenizer, lead) for text in prompts]
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))
    texts, unfinished = [""] * len(prompts), 0
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        use_cache=True,
    )
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            new = _continue(model, [encoded[index] for index in chosen], config)
            for index, ids in zip(chosen, new, strict=True):
                ended = tokenizer.eos_token_id in ids
                unfinished += not ended
                kept = ids[: ids.index(tokenizer.eos_token_id)] if ended else ids
                texts[index] = tokenizer.decode(kept, skip_special_tokens=True)
            if on_batch is not None:
                on_batch(start + len(chosen))
    finally:
        model.train(training)
    return Answers(texts, unfinished)


def _continue(model: Any, rows: list[list[int]], config: GenerationConfig) -> list[list[int]]:
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), config.pad_token_id)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, longest - len(row) :] = torch.tensor(row)
        mask[place, longest - len(row) :] = 1
    with torch.no_grad():
        out = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
        )
    new: list[list[int]] = out[:, longest:].tolist()
    return new
