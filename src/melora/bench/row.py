"""Row: one line of a result file, complete enough to be read years later without its run."""

import datetime
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from ..training.environment import describe_machine

_PROJECT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Environment:
    """When and where a run was made: the part of its rows that is the same in all. `load`: processes that wanted a
    core, on average over the minute before the run; near 0 on a quiet machine."""

    date: str
    commit: str
    machine: str
    python: str
    torch: str
    peft: str
    melora: str
    device: str
    threads: int
    load: float

    @classmethod
    def here(cls, device: str = "cpu") -> "Environment":
        return cls(
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            commit=_commit(),
            machine=describe_machine(),
            python=platform.python_version(),
            torch=version("torch"),
            peft=version("peft"),
            melora=version("melora"),
            device=device,
            threads=torch.get_num_threads(),
            load=os.getloadavg()[0],
        )


@dataclass(frozen=True)
class Facts:
    """What all contestants of a group share. A fact that a suite has no use for is 0, or 1 for `batch` and `layers`.

    Attributes:
        suite: the suite's name.
        case: which of the suite's questions, "layer" or "minilm query+value", say.
        tokens: rows that a layer sees; in `model`, tokens of one sequence.
        batch: sequences at once.
        layers: adapted layers, one after the other.
        dropout: probability, of every adapter.
    """

    suite: str
    case: str
    d_in: int = 0
    d_out: int = 0
    tokens: int = 0
    batch: int = 1
    layers: int = 1
    dtype: str = "float32"
    dropout: float = 0.0

    @property
    def title(self) -> str:
        """Names the group, on the terminal and in the file."""
        size = f" {self.d_in} -> {self.d_out}" if self.d_in else ""
        count = f", {self.tokens} tokens" if self.tokens else ""
        count += f", batch {self.batch}" if self.batch > 1 else ""
        count += f", {self.layers} layers" if self.layers > 1 else ""
        return f"{self.case}{size}{count}, {self.dtype}{f', dropout {self.dropout}' if self.dropout else ''}"


@dataclass(frozen=True, kw_only=True)
class Row(Facts, Environment):
    """What was measured, how often, and what came out.

    Times in milliseconds per call, ratios to the group's first contestant (see timing.Timing); saved_bytes and
    peak_bytes as in memory.py. None, an empty cell in the file: not measured by this suite.

    Attributes:
        contestant, setting: the method, and what was made equal to what ("equal rank", "merged").
        n, r, rank: blocks and rank of one, as the method counts them, and the rank of the whole update.
        adapters: how many different adapters the batch uses.
        parameters: how many numbers the contestant trains.
    """

    contestant: str
    setting: str
    n: int
    r: int
    rank: int
    adapters: int
    parameters: int
    repetitions: int
    calls: int
    ms_min: float | None = None
    ms_p50: float | None = None
    ratio_min: float | None = None
    ratio_p20: float | None = None
    ratio_p50: float | None = None
    ratio_p80: float | None = None
    saved_bytes: int | None = None
    peak_bytes: int | None = None


def _commit() -> str:
    """The checkout's commit, with "-dirty" where files differ from it; "" for an installed package or without git."""
    if not (_PROJECT / ".git").exists():
        return ""
    command = ["git", "-C", str(_PROJECT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""
