"""Says at the top of every test run which versions it tests; refuses a run against another PEFT than asked for."""

import logging
import os
from collections.abc import Iterator
from importlib.metadata import version

import pytest
import torch

if not torch.cuda.is_available():
    # Without a GPU the Triton kernels run in Triton's interpreter. It reads this when it is imported, by whichever test
    # comes first; nothing else here runs Triton on a CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_report_header(config: pytest.Config) -> str:
    return "tested with " + ", ".join(f"{name} {version(name)}" for name in ("peft", "transformers", "torch"))


def pytest_configure(config: pytest.Config) -> None:
    expected = os.environ.get("MELORA_EXPECT_PEFT")
    if expected is not None and version("peft") != expected:
        pytest.exit(f"this run is to test PEFT {expected}, but {version('peft')} comes first on sys.path", returncode=3)


@pytest.fixture(autouse=True)
def _untouched_logger() -> Iterator[None]:
    """A command sets up the logger "melora" for its whole process; a test after one that ran a command gets it back."""
    logger = logging.getLogger("melora")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before
