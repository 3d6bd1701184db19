"""The recipe's data section of the task causal-lm."""

import string
from dataclasses import dataclass, field
from typing import Literal

from ...errors import MeloraError
from ..recipe import DataSpec
from ..schema import check_keys, positive

IGNORED = -100  # the label of a token that is not learned, PyTorch's own
ROLES = ("instruction", "input", "output", "system", "messages", "text")


@dataclass
class InstructionData(DataSpec):
    """The data of task causal-lm, from the same places; text and label give way to columns with roles.

    Args:
        format: how a row becomes text: alpaca (Stanford Alpaca's wording), chat (the tokenizer's own chat template),
            template (the key `template`), or text (one column as it is).
        columns: the data's column for each role where it has another name: instruction, input (more to go with it),
            output, system, messages (whole conversations, for chat), text.
        template: the prompt of format template, with {instruction}, {input} and {system}; the output follows at once.
        system: a system message for format chat, where rows have none of their own.
        loss: what is learned: the completion (in a conversation every answer), or all.
        drop_cut: leave out rows of which max_length leaves nothing to learn; otherwise they are an error.
        answers: score answers too, after training: gsm8k (exact match of the final number).
        answer_rows: how many of the first validation rows to answer.
        answer_tokens: longest answer in tokens.
    """

    format: Literal["alpaca", "chat", "template", "text"] = "alpaca"
    columns: dict[str, str] = field(default_factory=dict)
    template: str = "{instruction}"
    system: str | None = None
    loss: Literal["completion", "all"] = "completion"
    drop_cut: bool = False
    answers: Literal["gsm8k"] | None = None
    answer_rows: int = 100
    answer_tokens: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text != ["text"] or self.label != "label":
            raise MeloraError("data.text, data.label: causal-lm has none; name the columns in data.columns")
        check_keys(self.columns, ROLES, "data.columns")
        for role, column in self.columns.items():
            if not isinstance(column, str) or not column:
                raise MeloraError(f"data.columns.{role}: must be the name of a column, got {column!r}")
        positive("data.answer_rows", self.answer_rows)
        positive("data.answer_tokens", self.answer_tokens)
        if "messages" in self.columns and self.format != "chat":
            raise MeloraError(f"data.columns.messages: is for data.format: chat, not {self.format}")
        if self.system is not None and self.format == "alpaca":
            raise MeloraError("data.system: the Alpaca wording has no place for it; use data.format: chat or template")
        if self.format == "text" and self.loss != "all":
            raise MeloraError("data.loss: rows of data.format: text have no completion of their own; set data.loss=all")
        if self.format == "text" and self.answers is not None:
            raise MeloraError("data.answers: rows of data.format: text have no prompt to answer; use another format")
        self._check_template()

    @property
    def text_columns(self) -> list[str]:
        """Every column that is taken as text, whatever a file's values look like."""
        return [self.column(role) for role in ROLES if role != "messages"]

    def column(self, role: str) -> str:
        """The data's name for a role."""
        return self.columns.get(role, role)

    def _check_template(self) -> None:
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None]
        except ValueError as error:
            raise MeloraError(f"data.template: {error}; write {{{{ and }}}} for braces of its own") from None
        for name in names:
            if name not in ("instruction", "input", "system"):
                raise MeloraError(
                    f"data.template: unknown field {{{name}}}; there is {{instruction}}, {{input}} and {{system}}, and "
                    "{{ and }} for braces of its own"
                )
        if self.format == "template" and "instruction" not in names:
            raise MeloraError("data.template: has no {instruction}, so that the prompt would not be seen")
