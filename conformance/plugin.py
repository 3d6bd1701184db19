"""The pytest plugin: `pytest -p conformance.plugin --melora-mode MODE --melora-results FILE.json`."""

import contextlib
import importlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest

from melora import MeloraError
from melora.registration import register

from . import stand_in
from .repoint import lora_only_rows, repoint_module
from .selection import why_not

_UNSUPPORTED_LAYER = re.compile(r"is a (\w+), which is not supported")
MODES = ("melora", "lora-name")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("melora")
    group.addoption("--melora-mode", choices=MODES, default="melora", help="how MELoRA takes LoRA's place")
    group.addoption("--melora-results", type=Path, help="JSON file for the outcome of every test")


def pytest_configure(config: pytest.Config) -> None:
    # Tests compare the config that they load with the class that they saved.
    register(stand_in.StandIn, stand_in.FittingModel)
    if config.getoption("--melora-mode") == "lora-name":
        peft.LoraConfig = stand_in.StandIn  # type: ignore[assignment,misc]  # a class is replaced, on purpose
    config.pluginmanager.register(_Results(config), "melora-results")


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any) -> None:
    """Before pytest looks at the first name of a test module: re-point the module, and what it shares with others."""
    common: Any = importlib.import_module("tests.testing_common")
    module = collector.getparent(pytest.Module).obj
    for shared in (common, module):
        # Every model is in the local cache (tiny_models.py): there is no first access that needs the hub.
        shared.hub_online_once = lambda model_id: contextlib.nullcontext()
        if not hasattr(shared, "_repointed_to_melora"):
            repoint_module(shared)
            shared._repointed_to_melora = True


class _Results:
    """Leaves tests out, runs the others, and writes down what became of each."""

    def __init__(self, config: pytest.Config) -> None:
        self.mode: str = config.getoption("--melora-mode")
        self.file: Path | None = config.getoption("--melora-results")
        self.outcomes: dict[str, dict[str, str]] = {}
        self.left_out: Counter[str] = Counter()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[Any]) -> None:
        kept: list[Any] = []
        left_out: list[Any] = []
        for item in items:
            reason = why_not(item, self.mode)
            (left_out if reason else kept).append(item)
            if reason:
                self.left_out[reason] += 1
        items[:] = kept
        config.hook.pytest_deselected(items=left_out)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        stand_in.running_test = True
        try:
            return (yield)
        except MeloraError as error:
            if found := _UNSUPPORTED_LAYER.search(str(error)):
                pytest.skip(f"layer not supported by melora: {found[1]}")
            raise
        finally:
            stand_in.running_test = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            reason = ""
            if report.skipped and isinstance(report.longrepr, tuple):
                reason = report.longrepr[2].removeprefix("Skipped: ")
            elif report.failed:
                reason = report.longreprtext.strip().splitlines()[-1]
            self.outcomes[report.nodeid] = {"outcome": report.outcome, "reason": reason}

    def pytest_sessionfinish(self) -> None:
        if self.file is not None:
            rows = {reason: len(found) for reason, found in lora_only_rows.items()}
            result = {"mode": self.mode, "outcomes": self.outcomes, "left_out": self.left_out, "lora_only_rows": rows}
            self.file.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
