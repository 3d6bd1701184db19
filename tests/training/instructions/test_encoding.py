from collections.abc import Callable
from typing import Any

import pytest

from melora import MeloraError
from melora.training.data import Split
from melora.training.instructions.encoding import encode_rows, give_pad_token, leading_ids, prompt_ids
from melora.training.instructions.formats import prompt
from melora.training.instructions.rows import Row
from melora.training.instructions.spec import IGNORED, InstructionData
from melora.training.tasks.causal_lm import CausalLM

Rows = Callable[..., Split]


def spec(**values: Any) -> InstructionData:
    return InstructionData(train="a.jsonl", validation="b.jsonl", **{"max_length": 512, **values})


def learned(example: dict[str, Any]) -> list[int]:
    return [label for label in example["labels"] if label != IGNORED]


def test_the_completion_alone_is_learned_up_to_its_end_token(chat_tokenizer: Any, rows_of: Rows) -> None:
    (example,) = encode_rows(rows_of(("Add.", "1+1", "2")), chat_tokenizer, spec(format="chat")).examples
    assert chat_tokenizer.decode(learned(example)) == "2<|im_end|>"
    ids, labels = example["input_ids"], example["labels"]
    first = labels.index(ids[-2])
    assert labels == [IGNORED] * first + ids[first:]
    text = prompt(rows_of(("Add.", "1+1", "2")).labels[0], spec(format="chat"), chat_tokenizer, "x")
    assert ids[:first] == prompt_ids(text, chat_tokenizer, leading_ids(chat_tokenizer))


@pytest.mark.parametrize("form", ["alpaca", "chat"])
def test_loss_on_all_learns_every_token(chat_tokenizer: Any, rows_of: Rows, form: str) -> None:
    (example,) = encode_rows(rows_of(("Add.", "", "2")), chat_tokenizer, spec(format=form, loss="all")).examples
    assert example["labels"] == example["input_ids"]
    assert example["input_ids"][-1] == chat_tokenizer.eos_token_id


def test_texts_begin_once_and_end_once(llama_tokenizer: Any, make_tokenizer: Callable[..., Any], rows_of: Rows) -> None:
    (example,) = encode_rows(rows_of(("a", "", "b</s>")), llama_tokenizer, spec()).examples
    ids = example["input_ids"]
    assert (ids[0], ids.count(1), ids[-1], ids.count(2)) == (1, 1, 2, 1)
    assert example["labels"][0] == IGNORED
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer = make_tokenizer(bos=True, eos_token="</s>", chat_template=template)
    (example,) = encode_rows(rows_of(("a", "", "b")), tokenizer, spec(format="chat")).examples
    assert tokenizer.decode(example["input_ids"]) == "<s>a</s>b</s>"
    assert tokenizer.decode(learned(example)) == "b</s>"


def test_every_answer_of_a_conversation_is_learned(chat_tokenizer: Any, rows_of: Rows) -> None:
    messages = (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    (example,) = encode_rows(rows_of(Row("", "", "d", None, messages)), chat_tokenizer, spec(format="chat")).examples
    assert chat_tokenizer.decode(learned(example)) == "b<|im_end|>d<|im_end|>"


def test_no_token_straddles_prompt_and_answer(make_tokenizer: Callable[..., Any], rows_of: Rows) -> None:
    """Here a newline and "y" are one token, and the prompt ends with the one where the answer begins with the other."""
    tokenizer = make_tokenizer([("Ċ", "y")])
    assert len(tokenizer("\ny", add_special_tokens=False)["input_ids"]) == 1
    (example,) = encode_rows(rows_of(("ok?", "", "yes")), tokenizer, spec()).examples
    assert tokenizer.decode(learned(example)) == "yes<|im_end|>"
    given = prompt(rows_of(("ok?", "", "yes")).labels[0], spec(), tokenizer, "x")
    ids = prompt_ids(given, tokenizer, leading_ids(tokenizer))
    assert example["input_ids"][: len(ids)] == ids


def test_cut_rows_are_counted_and_end_without_the_end_token(llama_tokenizer: Any, rows_of: Rows) -> None:
    whole = encode_rows(rows_of(("a", "", "b"), ("a", "", "b" * 100)), llama_tokenizer, spec())
    short = len(whole.examples[0]["input_ids"])
    cut = encode_rows(rows_of(("a", "", "b"), ("a", "", "b" * 100)), llama_tokenizer, spec(max_length=short))
    assert (whole.cut, cut.cut, cut.dropped) == (0, 1, 0)
    assert [len(example["input_ids"]) for example in cut.examples] == [short, short]
    assert [2 in example["input_ids"] for example in cut.examples] == [True, False]


def test_rows_with_nothing_left_to_learn(llama_tokenizer: Any, rows_of: Rows) -> None:
    rows = rows_of(("a", "", "b"), ("a" * 300, "", "b"), ("c", "", "d"))
    with pytest.raises(
        MeloraError, match=r"rows\.jsonl, row 2: its prompt fills data\.max_length=200 .*\(1 such rows of 3"
    ):
        encode_rows(rows, llama_tokenizer, spec(max_length=200))
    dropped = encode_rows(rows, llama_tokenizer, spec(max_length=200, drop_cut=True))
    assert (len(dropped.examples), dropped.cut, dropped.dropped) == (2, 1, 1)
    assert len(encode_rows(rows, llama_tokenizer, spec(max_length=200, loss="all")).examples) == 3
    with pytest.raises(MeloraError, match="nothing of the answer is left"):
        encode_rows(rows, llama_tokenizer, spec(max_length=20, drop_cut=True))


def test_padding_never_hides_the_end_of_an_answer(chat_tokenizer: Any, llama_tokenizer: Any, rows_of: Rows) -> None:
    """The famous bug: padding is the end token, whoever masks padding masks the end, and answers never stop."""
    for tokenizer in (chat_tokenizer, llama_tokenizer):
        examples = CausalLM().encode(rows_of(("a", "", "b"), ("a", "", "bbbb")), tokenizer, spec()).examples
        assert tokenizer.pad_token == "<unk>"
        batch = CausalLM().collator(tokenizer)(examples)
        last = [row[row != IGNORED][-1].item() for row in batch["labels"]]
        assert last == [tokenizer.eos_token_id] * 2
        assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
        assert (batch["attention_mask"].sum(1) == batch["input_ids"].ne(tokenizer.pad_token_id).sum(1)).all()


def test_without_another_token_padding_is_the_end_token(make_tokenizer: Callable[..., Any], rows_of: Rows) -> None:
    tokenizer = make_tokenizer(unk_token=None)
    give_pad_token(tokenizer)
    assert tokenizer.pad_token == tokenizer.eos_token
    batch = CausalLM().collator(tokenizer)(
        encode_rows(rows_of(("a", "", "b"), ("a", "", "bb")), tokenizer, spec()).examples
    )
    assert [row[row != IGNORED][-1].item() for row in batch["labels"]] == [tokenizer.eos_token_id] * 2
