"""The contract between the runs, the statistics and the report."""

import dataclasses
import inspect
import re

import pytest

from melora.compare.about import About
from melora.compare.record import Point, Record


@pytest.mark.parametrize("contract", [About, Point, Record])
def test_every_field_is_explained_and_no_other(contract: type) -> None:
    explained = re.findall(r"^    (\w[\w, ]*): ", inspect.getdoc(contract) or "", re.MULTILINE)
    names = [name for names in explained for name in names.split(", ")]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(contract))


def test_a_record_has_nothing_that_was_not_measured() -> None:
    record = Record("hash", "task", "method", "lora", 0, 1e-3, "accuracy", True)
    fields = dataclasses.asdict(record)
    known = {"run", "task", "method", "peft_method", "seed", "learning_rate", "metric", "greater_is_better", "status"}
    empty = (None, False, "", (), {})
    assert all(value in empty for name, value in fields.items() if name not in known)
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.test_score = 1.0  # type: ignore[misc]  # what mypy forbids is what is tried
