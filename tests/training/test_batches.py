from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from melora.training.batches import Batch, describe


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def rows(tokenizer: Any) -> list[dict[str, Any]]:
    texts = ["the film is good", "a plot", "bad", "the film is awful and dull", "a plot"]
    return [{"input_ids": tokenizer(text)["input_ids"]} for text in texts]


def batch(tokenizer: Any, rows: list[dict[str, Any]]) -> Batch:
    return Batch.of(tokenizer.pad(rows, return_tensors="pt"), torch.tensor(1.0))


def test_rows_are_found_by_their_tokens(tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    found = describe([batch(tokenizer, [rows[3], rows[0]]), batch(tokenizer, [rows[2]])], rows, tokenizer)
    assert found == "training rows 1, 3, 4 (the first reads 'the film is good')"
    assert describe([batch(tokenizer, [rows[1]])], rows, None) == "training rows 2, 5"  # the same text twice


def test_many_rows_are_counted_and_long_texts_cut(tokenizer: Any) -> None:
    rows = [{"input_ids": tokenizer("the film is a plot and " * 3 + "good " * n)["input_ids"]} for n in range(1, 12)]
    found = describe([batch(tokenizer, rows)], rows, tokenizer)
    assert found.startswith("training rows 1, 2, 3, 4, 5, 6, 7, 8 and 3 more (the first reads 'the film is a plot")
    assert len(found) < 140


def test_rows_that_are_not_in_the_data_as_they_are(tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    packed = Batch(torch.tensor([rows[0]["input_ids"] + rows[1]["input_ids"]]), None, torch.tensor(1.0))
    assert describe([packed], rows, tokenizer) == "1 rows (the first reads 'the film is good a plot')"


def test_a_model_that_takes_no_token_ids(tokenizer: Any) -> None:
    images = Batch.of({"pixel_values": torch.zeros(2, 3)}, torch.tensor(1.0))
    assert describe([images], [], tokenizer) == "a batch without token ids"
