from collections.abc import Callable
from typing import Any

import pytest

from melora import MeloraError
from melora.training.instructions.formats import Piece, check_format, pieces, prompt, wording
from melora.training.instructions.rows import Row
from melora.training.instructions.spec import InstructionData


def spec(**values: Any) -> InstructionData:
    return InstructionData(train="a.jsonl", validation="b.jsonl", **values)


def test_alpacas_wording_to_the_letter(llama_tokenizer: Any) -> None:
    without = pieces(Row("Say hi.", "", "hi"), spec(), llama_tokenizer, "x")
    assert without == [
        Piece(
            "Below is an instruction that describes a task. Write a response that appropriately completes the "
            "request.\n\n### Instruction:\nSay hi.\n\n### Response:\n",
            False,
        ),
        Piece("hi</s>", True),
    ]
    assert prompt(Row("Add.", "1 {2}", "3"), spec(), llama_tokenizer, "x") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 {2}\n\n"
        "### Response:\n"
    )


def test_a_chat_template_with_an_input_and_a_system_message(chat_tokenizer: Any) -> None:
    row = Row("Sum up.", "A text.", "Short.", "Be brief.")
    before = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSum up.\n\nA text.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert pieces(row, spec(format="chat"), chat_tokenizer, "x") == [
        Piece(before, False),
        Piece("Short.<|im_end|>", True),
    ]
    assert prompt(row, spec(format="chat"), chat_tokenizer, "x") == before


def test_every_answer_of_a_conversation_is_learned_and_ends(chat_tokenizer: Any) -> None:
    messages = (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    found = pieces(Row("", "", "d", None, messages), spec(format="chat"), chat_tokenizer, "x")
    assert [piece.text for piece in found if piece.answer] == ["b<|im_end|>", "d<|im_end|>"]
    assert found[2].text == "\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_ends_turns_without_the_end_token_gets_it(make_tokenizer: Callable[..., Any]) -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    tokenizer = make_tokenizer(eos_token="</s>", chat_template=template)
    found = pieces(Row("a", "", "b"), spec(format="chat"), tokenizer, "x")
    assert "".join(piece.text for piece in found) == "[user] a\n[assistant] b</s>"
    assert found[-1].answer


def test_a_template_of_ones_own() -> None:
    own = spec(format="template", template="Q: {instruction} {{x}}\n{input}\nA: ", system=None)
    assert wording(own) == own.template
    row = Row("two?", "1+1", "2")
    assert prompt(row, own, None, "x") == "Q: two? {x}\n1+1\nA: "


def test_a_text_as_it_is(llama_tokenizer: Any) -> None:
    row = Row("", "", "Once.")
    assert pieces(row, spec(format="text", loss="all"), llama_tokenizer, "x") == [Piece("Once.</s>", True)]


def test_an_end_token_that_is_there_is_not_doubled(llama_tokenizer: Any) -> None:
    assert pieces(Row("a", "", "b</s>"), spec(), llama_tokenizer, "x")[-1].text == "b</s>"


def test_what_the_tokenizer_lacks_is_told(make_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(MeloraError, match="its tokenizer has no end token"):
        check_format(spec(), make_tokenizer(eos_token=None))
    with pytest.raises(MeloraError, match=r"data\.format: the tokenizer of model .* has no chat template"):
        check_format(spec(format="chat"), make_tokenizer())


def test_a_conversation_that_the_template_refuses(make_tokenizer: Callable[..., Any]) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
    )
    with pytest.raises(
        MeloraError, match=r"rows, row 3: the tokenizer's chat template refuses the conversation: no system"
    ):
        pieces(Row("a", "", "b", "s"), spec(format="chat"), make_tokenizer(chat_template=template), "rows, row 3")


def test_a_template_that_rewrites_earlier_turns(make_tokenizer: Callable[..., Any]) -> None:
    template = "{% for m in messages %}{{ m.content if loop.last else m.content | upper }};{% endfor %}"
    messages = (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    with pytest.raises(MeloraError, match="writes message 2 otherwise once more follows"):
        pieces(Row("", "", "d", None, messages), spec(format="chat"), make_tokenizer(chat_template=template), "x")
