"""Row: one line of a result file, complete enough to be read years later without its run."""

import datetime
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
    """When and where a run was made: the part of its rows that is the same in all."""

    date: str
    commit: str
    machine: str
    python: str
    torch: str
    peft: str
    melora: str
    threads: int

    @classmethod
    def here(cls) -> "Environment":
        return cls(
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            commit=_commit(),
            machine=describe_machine(),
            python=platform.python_version(),
            torch=version("torch"),
            peft=version("peft"),
            melora=version("melora"),
            threads=torch.get_num_threads(),
        )


@dataclass(frozen=True)
class Row(Environment):
    """What was measured (suite to parameters), how often, and what came out.

    Times in milliseconds per call, ratios to the frozen base (see timing.Timing), saved_bytes as in memory.saved_bytes.
    """

    suite: str
    d_in: int
    d_out: int
    tokens: int
    n: int
    r: int
    dtype: str
    dropout: float
    contestant: str
    rank: int
    parameters: int
    repetitions: int
    calls: int
    ms_min: float
    ms_p50: float
    ratio_min: float
    ratio_p20: float
    ratio_p50: float
    ratio_p80: float
    saved_bytes: int


def _commit() -> str:
    """The checkout's commit, with "-dirty" where files differ from it; "" for an installed package or without git."""
    if not (_PROJECT / ".git").exists():
        return ""
    command = ["git", "-C", str(_PROJECT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""
