"""From the columns of a file to conversations, whatever the data set calls them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import MeloraError
from ..data import check_columns, read_rows, text_column
from .spec import InstructionData

Message = dict[str, str]
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        instruction: what is asked; empty for format text.
        input: what goes with it, often empty.
        system: the system message, or None.
        output: the answer, or the whole text of format text.
        messages: the whole conversation, in place of the others, where the data has such a column.
    """

    instruction: str
    input: str
    output: str
    system: str | None = None
    messages: tuple[tuple[str, str], ...] = ()


@read_rows.register
def _(spec: InstructionData, name: str, file: Path, table: Any) -> tuple[list[tuple[str, ...]], list[Any]]:
    """Rows stand in the place of labels; there are no texts beside them."""
    if spec.format == "chat" and (spec.column("messages") in table.column_names or "messages" in spec.columns):
        rows = _conversations(spec, name, file, table)
    else:
        rows = _single(spec, name, file, table)
    return [()] * len(rows), rows


def _single(spec: InstructionData, name: str, file: Path, table: Any) -> list[Row]:
    if spec.format == "text":
        check_columns([spec.column("text")], name, file, table)
        return [Row("", "", text) for text in _filled(text_column(table, file, spec.column("text")), file, "text")]
    check_columns([spec.column("instruction"), spec.column("output")], name, file, table)
    asked = text_column(table, file, spec.column("instruction"))
    answers = _filled(text_column(table, file, spec.column("output")), file, spec.column("output"))
    inputs = _optional(spec, "input", name, file, table)
    systems = _optional(spec, "system", name, file, table)
    if spec.format == "template" and any(inputs) and "{input" not in spec.template:
        raise MeloraError(
            f"data.template: has no {{input}}, but column {spec.column('input')!r} of {file} holds text that belongs "
            "to the prompt; add {input}, or name an empty column in data.columns.input"
        )
    return [
        Row(instruction, more or "", answer, system or spec.system)
        for instruction, more, answer, system in zip(asked, inputs, answers, systems, strict=True)
    ]


def _optional(spec: InstructionData, role: str, name: str, file: Path, table: Any) -> list[str | None]:
    """A column that may be missing, unless the recipe names it, and that may have empty values."""
    column = spec.column(role)
    if role in spec.columns:
        check_columns([column], name, file, table)
    if column not in table.column_names:
        return [None] * table.num_rows
    values: list[Any] = table[column].to_pylist()
    for index, value in enumerate(values):
        if value is not None and not isinstance(value, str):
            raise MeloraError(f"{file}, row {index + 1}: column {column!r} holds {value!r}, not text")
    return values


def _filled(values: list[str], file: Path, column: str) -> list[str]:
    for index, value in enumerate(values):
        if not value.strip():
            raise MeloraError(
                f"{file}, row {index + 1}: column {column!r} is empty, so there is nothing to learn from the row"
            )
    return values


def _conversations(spec: InstructionData, name: str, file: Path, table: Any) -> list[Row]:
    column = spec.column("messages")
    check_columns([column], name, file, table)
    rows = []
    for index, value in enumerate(table[column].to_pylist()):
        where = f"{file}, row {index + 1}: column {column!r}"
        messages = _messages(value, where)
        if spec.system is not None and messages[0][0] != "system":
            messages = [("system", spec.system), *messages]
        rows.append(Row("", "", messages[-1][1], None, tuple(messages)))
    return rows


def _messages(value: Any, where: str) -> list[tuple[str, str]]:
    """Messages as {role, content}, or as {from, value} as ShareGPT has them."""
    if not isinstance(value, list) or not value:
        raise MeloraError(f"{where} holds {str(value)[:80]!r}, not a list of messages")
    messages = []
    for message in value:
        keys = message if isinstance(message, dict) else {}
        role = _ROLES.get(str(keys.get("role") or keys.get("from")))
        content = keys.get("content") if keys.get("content") is not None else keys.get("value")
        if role is None or not isinstance(content, str):
            raise MeloraError(
                f"{where} holds the message {str(message)[:80]!r}; a message has a role (system, user or assistant) "
                "and a content"
            )
        messages.append((role, content))
    if messages[-1][0] != "assistant" or not messages[-1][1].strip():
        raise MeloraError(f"{where}: the last message is not an answer of the assistant, so there is nothing to learn")
    if not any(role == "user" for role, _ in messages):
        raise MeloraError(f"{where}: has no message of the user")
    return messages
