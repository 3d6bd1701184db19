import pytest
import torch

from melora.training.failures import TrainingError
from melora.training.halving import with_halving

MESSAGES = (
    "CUDA out of memory. Tried to allocate 2.00 GiB",
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory",
)


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("kind", [RuntimeError, torch.OutOfMemoryError])
def test_rows_are_halved_until_they_fit(kind: type[RuntimeError], message: str) -> None:
    seen: list[int] = []

    def run(rows: int) -> str:
        seen.append(rows)
        if rows > 5:
            raise kind(message)
        return f"{rows} rows"

    assert with_halving(run, 20) == "5 rows"
    assert seen == [20, 10, 5]


def test_one_row_that_does_not_fit_is_a_failure() -> None:
    def run(rows: int) -> None:
        raise RuntimeError(MESSAGES[0])

    with pytest.raises(TrainingError, match="out of memory with one row at a time"):
        with_halving(run, 4)


def test_other_errors_pass() -> None:
    def run(rows: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        with_halving(run, 4)
