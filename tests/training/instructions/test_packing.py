from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from melora.training.data import Split
from melora.training.instructions.encoding import encode_rows
from melora.training.instructions.packing import pack
from melora.training.instructions.spec import IGNORED, InstructionData

ROWS = [("a", "", "b" * count) for count in (3, 40, 9, 25, 1)]


def test_sequences_hold_whole_rows(chat_tokenizer: Any, rows_of: Callable[..., Split]) -> None:
    spec = InstructionData(train="a.csv", validation="b.csv", format="chat", max_length=200)
    rows = encode_rows(rows_of(*ROWS), chat_tokenizer, spec).examples
    packed = pack(rows, 200)
    assert len(packed) < len(rows)
    assert all(len(row["input_ids"]) <= 200 for row in packed)
    pieces = []
    for row in packed:
        start = 0
        for length in row["seq_lengths"]:
            pieces.append((row["input_ids"][start : start + length], row["labels"][start : start + length]))
            start += length
        assert start == len(row["input_ids"])
    assert sorted(pieces) == sorted((row["input_ids"], row["labels"]) for row in rows)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_have_the_loss_and_gradient_of_rows_alone(
    tiny_llama_folder: Path, chat_tokenizer: Any, rows_of: Callable[..., Split], attention: str
) -> None:
    spec = InstructionData(train="a.csv", validation="b.csv", format="chat", max_length=200)
    rows = encode_rows(rows_of(*ROWS), chat_tokenizer, spec).examples
    model = AutoModelForCausalLM.from_pretrained(
        tiny_llama_folder, attn_implementation=attention, dtype=torch.float64
    ).eval()
    flat = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(pack(rows, 200))
    tokens = sum(label != IGNORED for row in rows for label in row["labels"])
    assert (flat["labels"] != IGNORED).sum() == tokens

    alone = sum(model(**one(row)).loss * (one(row)["labels"] != IGNORED).sum() for row in rows) / tokens
    packed = model(**flat, use_cache=False).loss  # as SFTTrainer calls it: with a cache rows would see each other
    assert packed.item() == pytest.approx(alone.item(), rel=1e-6)  # the loss is taken in fp32
    weight = model.model.layers[0].self_attn.q_proj.weight
    gradients = [torch.autograd.grad(loss, weight)[0] for loss in (alone, packed)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def one(row: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key]]) for key in ("input_ids", "labels")}
