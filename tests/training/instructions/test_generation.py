from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from melora import MeloraError
from melora.training.data import Split
from melora.training.instructions import generation
from melora.training.instructions.encoding import give_pad_token
from melora.training.instructions.generation import Answers, answer, check_answers, exact_match
from melora.training.instructions.spec import InstructionData


@pytest.fixture
def model(tiny_llama_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_llama_folder)


@pytest.fixture
def tokenizer(tiny_llama_folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_folder)
    give_pad_token(tokenizer)
    return tokenizer


def test_a_batch_answers_as_each_prompt_alone(model: Any, tokenizer: Any) -> None:
    prompts = ["a", "a much longer prompt than the others", "some text"]
    together = answer(model, tokenizer, prompts, max_new_tokens=12, batch=3)
    assert together.texts == answer(model, tokenizer, prompts, max_new_tokens=12, batch=1).texts
    for prompt, text in zip(prompts, together.texts, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        for _ in range(12):  # greedy, step by step, without a cache
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
            if ids[0, -1] == tokenizer.eos_token_id:
                break
        assert text == tokenizer.decode(ids[0, len(tokenizer(prompt)["input_ids"]) :], skip_special_tokens=True)


def test_answers_end_at_the_end_token(model: Any, tokenizer: Any) -> None:
    """With the end token's logit made the largest, the first token ends the answer."""
    output = model.get_output_embeddings()
    output.bias = torch.nn.Parameter(torch.zeros(output.out_features))
    output.bias.data[tokenizer.eos_token_id] = 1e3
    assert answer(model, tokenizer, ["a", "b"], max_new_tokens=4, batch=2) == Answers(["", ""], 0)
    output.bias.data[tokenizer.eos_token_id] = -1e3
    assert answer(model, tokenizer, ["a", "b"], max_new_tokens=4, batch=2).unfinished == 2


def test_the_model_is_left_in_its_mode(model: Any, tokenizer: Any) -> None:
    model.train()
    answer(model, tokenizer, ["a"], max_new_tokens=1, batch=1)
    assert model.training


def test_exact_match_counts_rows_whose_final_number_is_right(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Any, rows_of: Callable[..., Split]
) -> None:
    given: dict[str, Any] = {}

    def canned(model: Any, tokenizer: Any, prompts: list[str], **kwargs: Any) -> Answers:
        given.update(prompts=prompts, **kwargs)
        return Answers(["I think\n#### 1,000", "7", "none"], 1)

    monkeypatch.setattr(generation, "answer", canned)
    rows = rows_of(("a", "", "#### 1000"), ("b", "", "#### 8"), ("c", "", "#### 9"), ("d", "", "#### 7"))
    spec = InstructionData(train="a", validation="b", format="chat", answers="gsm8k", answer_rows=3, answer_tokens=5)
    assert exact_match(None, tokenizer, rows, spec, batch=2) == {
        "answers": "gsm8k",
        "exact_match": 1 / 3,
        "correct": 1,
        "rows": 3,
        "unfinished": 1,
        "answer_tokens": 5,
    }
    assert given["prompts"][0] == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert (given["max_new_tokens"], given["batch"]) == (5, 2)


def test_rows_that_end_in_no_number_can_not_be_compared(rows_of: Callable[..., Split]) -> None:
    rows = rows_of(("a", "", "#### 1"), ("b", "", "none"))
    spec = InstructionData(train="a", validation="b", answers="gsm8k")
    with pytest.raises(MeloraError, match=r"row 2: its answer ends in no number, which data\.answers=gsm8k compares"):
        check_answers(rows, spec)
    check_answers(rows, InstructionData(train="a", validation="b", answers="gsm8k", answer_rows=1))
    check_answers(rows, InstructionData(train="a", validation="b"))
