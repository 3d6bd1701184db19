import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

from melora import MeloraError
from melora.training.data import read_split
from melora.training.instructions.rows import Row
from melora.training.instructions.spec import InstructionData


def spec(**values: Any) -> InstructionData:
    return InstructionData(train="a.jsonl", validation="b.jsonl", **values)


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def read(file: Path, **values: Any) -> list[Row]:
    return read_split("train", file, spec(**values)).labels


def test_alpacas_columns_need_no_naming(tmp_path: Path) -> None:
    file = written(tmp_path, {"instruction": "a", "input": "", "output": "b"}, {"instruction": "c", "output": "d"})
    assert read(file) == [Row("a", "", "b"), Row("c", "", "d")]


def test_columns_by_their_roles(tmp_path: Path) -> None:
    dolly = written(tmp_path, {"instruction": "a", "context": None, "response": "b", "category": "x"})
    assert read(dolly, columns={"input": "context", "output": "response"}) == [Row("a", "", "b")]
    gsm8k = written(tmp_path, {"question": "a", "answer": "#### 1"})
    assert read(gsm8k, columns={"instruction": "question", "output": "answer"}) == [Row("a", "", "#### 1")]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_other_kinds_of_files_keep_numbers_as_text(tmp_path: Path, kind: str) -> None:
    table = pyarrow.table({"instruction": ["7", "a"], "output": ["007", "b"]})
    file = tmp_path / f"rows.{kind}"
    if kind == "csv":
        pyarrow.csv.write_csv(table, file)
    else:
        pyarrow.parquet.write_table(table, file)
    assert read(file) == [Row("7", "", "007"), Row("a", "", "b")]


def test_conversations_in_both_spellings(tmp_path: Path) -> None:
    openai = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert read(written(tmp_path, {"messages": openai}), format="chat", system="s")[0].messages == (
        ("system", "s"),
        ("user", "a"),
        ("assistant", "b"),
    )
    sharegpt = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    (row,) = read(written(tmp_path, {"turns": sharegpt}), format="chat", columns={"messages": "turns"})
    assert (row.messages, row.output) == ((("user", "a"), ("assistant", "b")), "b")


def test_a_system_message_of_a_row_goes_before_the_recipes(tmp_path: Path) -> None:
    row = {"instruction": "a", "output": "b"}
    file = written(tmp_path, {**row, "system": "own"}, {**row, "system": None})
    assert [row.system for row in read(file, format="chat", system="all")] == ["own", "all"]


@pytest.mark.parametrize(
    ("row", "values", "told"),
    [
        ({"question": "a", "output": "b"}, {}, "no column 'instruction'; the columns are question, output"),
        ({"instruction": "a", "output": ""}, {}, "row 1: column 'output' is empty, so there is nothing to learn"),
        ({"instruction": "a", "output": 3}, {}, "row 1: column 'output' holds 3, not text"),
        ({"instruction": "a", "output": "b"}, {"columns": {"input": "context"}}, "no column 'context'"),
        ({"instruction": "a", "input": 3, "output": "b"}, {}, "row 1: column 'input' holds 3, not text"),
        (
            {"instruction": "a", "input": "b", "output": "c"},
            {"format": "template"},
            "data.template: has no {input}, but",
        ),
        ({"messages": []}, {"format": "chat"}, "row 1: column 'messages' holds '[]', not a list of messages"),
        ({"messages": [{"role": "user", "content": "a"}]}, {"format": "chat"}, "the last message is not an answer"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, {"format": "chat"}, "has no message of the user"),
        ({"messages": [{"role": "tool", "content": "a"}]}, {"format": "chat"}, "a message has a role (system, user or"),
    ],
)
def test_what_is_wrong_with_a_row_is_told(tmp_path: Path, row: Any, values: dict[str, Any], told: str) -> None:
    with pytest.raises(MeloraError) as caught:
        read(written(tmp_path, row), **values)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"columns": {"prompt": "a"}}, "data.columns: unknown key 'prompt'"),
        ({"columns": {"input": ""}}, "data.columns.input: must be the name of a column"),
        ({"columns": {"messages": "m"}}, "data.columns.messages: is for data.format: chat, not alpaca"),
        ({"label": "mood"}, "causal-lm has none; name the columns in data.columns"),
        ({"system": "s"}, "data.system: the Alpaca wording has no place for it"),
        ({"format": "text"}, "data.loss: rows of data.format: text have no completion"),
        ({"format": "text", "loss": "all", "answers": "gsm8k"}, "data.answers: rows of data.format: text"),
        ({"format": "template", "template": "Q:"}, "data.template: has no {instruction}"),
        ({"format": "template", "template": "{question}"}, "data.template: unknown field {question}"),
        ({"format": "template", "template": "{instruction"}, "data.template: expected '}'"),
        ({"answer_rows": 0}, "data.answer_rows: must be a finite number above 0"),
    ],
)
def test_what_is_wrong_with_the_section_is_told(values: dict[str, Any], told: str) -> None:
    with pytest.raises(MeloraError) as caught:
        spec(**values)
    assert told in str(caught.value)
