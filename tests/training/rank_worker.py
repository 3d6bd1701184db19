"""What each process of a launch in test_distributed.py runs: melora's commands, one after the other, for one start.

Importing takes most of a launch's time. Arguments: a JSON file with the commands, and a folder for what each rank saw.
A command is {"arguments": [...], "sigterm": step or null}; SIGTERM goes to the last rank alone, within that step.
"""

import contextlib
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from melora.cli import frame
from melora.training import trainer as trainer_module
from melora_cli import main

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
_written: set[str] = set()


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str) and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        _written.add(os.path.abspath(arguments[0]))
    elif event == "os.rename":
        _written.add(os.path.abspath(arguments[1]))


_torch_save = torch.save


def _save(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
    if isinstance(file, str | Path):  # opened in C++, which Python's audit does not see
        _written.add(os.path.abspath(file))
    _torch_save(value, file, *args, **kwargs)


class Killed(trainer_module.AdapterTrainer):
    """Sends SIGTERM to its own process at a step."""

    at: int | None = None

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step + 1 == self.at and RANK == WORLD - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_step(*args, **kwargs)


def run(arguments: list[str], sigterm: int | None) -> dict[str, Any]:
    Killed.at = sigterm
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    commands, seen = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    leave, frame.leave = frame.leave, lambda: None  # the ranks stay together for the next command
    frame._LET_MAIN_SPEAK = 0.0
    trainer_module.AdapterTrainer = Killed
    torch.save = _save
    sys.addaudithook(_note)
    results = [run(command["arguments"], command["sigterm"]) for command in commands]
    written = sorted(_written)
    (seen / f"rank-{RANK}.json").write_text(json.dumps({"results": results, "written": written}))
    leave()  # a rank that ends with the group open may end in an abort, as the other's connections close
