"""From a row to its text, cut into pieces that are learned and pieces that are not."""

from dataclasses import dataclass
from typing import Any

from ...errors import MeloraError
from ..schema import one_line
from .rows import Row
from .spec import InstructionData

# Stanford Alpaca's wording, to the letter.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Piece:
    """A part of a row's text; `answer` if it is what the model is to say."""

    text: str
    answer: bool


def pieces(row: Row, spec: InstructionData, tokenizer: Any, where: str) -> list[Piece]:
    """A row's whole text in order; the last piece is an answer and ends with the end token.

    Args:
        row: the row.
        spec: how to write it.
        tokenizer: gives the end token, and the chat template.
        where: the row's place, for messages.

    Raises:
        MeloraError: the chat template refuses the conversation, or changes earlier turns as later ones come.
    """
    end: str = tokenizer.eos_token
    if spec.format == "text":
        found = [Piece(row.output, True)]
    elif spec.format == "chat":
        found = _chat(_conversation(row), tokenizer, where)
    else:
        found = [Piece(prompt(row, spec, tokenizer, where), False), Piece(row.output, True)]
    *before, last = found
    return [*before, last if last.text.endswith(end) else Piece(last.text + end, True)]


def prompt(row: Row, spec: InstructionData, tokenizer: Any, where: str) -> str:
    """What the model is given before the (last) answer: the same text in training and in generation."""
    if spec.format == "chat":
        return _render(_conversation(row)[:-1], tokenizer, where, ask=True)
    if spec.format == "alpaca":
        wording = ALPACA_INPUT if row.input else ALPACA
        return wording.format(instruction=row.instruction, input=row.input)
    return spec.template.format(instruction=row.instruction, input=row.input, system=row.system or "")


def wording(spec: InstructionData) -> str | None:
    """The prompt without input, as a format string; None where it is a chat template's, or there is no prompt."""
    return {"alpaca": ALPACA, "template": spec.template}.get(spec.format)


def check_format(spec: InstructionData, tokenizer: Any) -> None:
    """Raise a MeloraError if the tokenizer has no end token, or no chat template where one is asked for."""
    name = tokenizer.name_or_path
    if tokenizer.eos_token is None:
        raise MeloraError(
            f"model {name}: its tokenizer has no end token, without which answers never end; set eos_token in its "
            "tokenizer_config.json"
        )
    if spec.format == "chat" and not tokenizer.chat_template:
        raise MeloraError(
            f"data.format: the tokenizer of model {name} has no chat template; use data.format=alpaca or template, or "
            "the model's chat or instruct version"
        )


def _conversation(row: Row) -> list[dict[str, str]]:
    if row.messages:
        return [{"role": role, "content": content} for role, content in row.messages]
    asked = f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
    system = [{"role": "system", "content": row.system}] if row.system else []
    return [*system, {"role": "user", "content": asked}, {"role": "assistant", "content": row.output}]


def _chat(messages: list[dict[str, str]], tokenizer: Any, where: str) -> list[Piece]:
    """Each answer runs from where the template asks for it to its end token; the rest is not the model's to say."""
    whole, end = _render(messages, tokenizer, where, ask=False), tokenizer.eos_token
    found, done = [], 0
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(messages[:index], tokenizer, where, ask=True)
        upto = _render(messages[: index + 1], tokenizer, where, ask=False)
        if not (whole.startswith(upto) and upto.startswith(before) and len(before) >= done):
            raise MeloraError(
                f"{where}: the chat template writes message {index + 1} otherwise once more follows, so that what is "
                "learned can't be told from the prompt; use conversations of one answer each"
            )
        answer = upto[len(before) :]
        ending = answer.rfind(end)
        stop = len(before) + (ending + len(end) if ending >= 0 else len(answer.rstrip()))
        found += [Piece(whole[done : len(before)], False), Piece(whole[len(before) : stop], True)]
        done = stop
    return found


def _render(messages: list[dict[str, str]], tokenizer: Any, where: str, *, ask: bool) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except (TemplateError, ValueError, TypeError) as error:
        raise MeloraError(
            f"{where}: the tokenizer's chat template refuses the conversation: {one_line(error)}"
        ) from None
    return text
