"""The options of `melora bench`, their presets, and what must hold before anything is allocated."""

import argparse
import itertools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import positive_int
from ..errors import MeloraError
from ..shapes import check_shape
from .models import MODELS
from .peers import PEERS
from .presets import DEFAULTS, PRESETS, REPETITIONS
from .shapes import DTYPES


@dataclass(frozen=True)
class Options:
    """What to measure. `pairs` are the (n, r) of the MELoRA contestants; peers by their names in PEERS."""

    suites: list[str]
    d_in: list[int]
    d_out: int | None
    tokens: list[int]
    pairs: list[tuple[int, int]]
    dtypes: list[str]
    dropouts: list[float]
    batches: list[int]
    adapters: list[int]
    models: list[str]
    peers: list[str]
    peers_given: bool
    device: str
    threads: int | None
    repetitions: int
    output: Path | None
    resume: bool

    def widths(self) -> list[tuple[int, int]]:
        return [(d_in, self.d_out or d_in) for d_in in self.d_in]

    @classmethod
    def of(cls, args: argparse.Namespace, known: list[str]) -> "Options":
        """The command's options over the preset's over the defaults, checked.

        Args:
            known: names of all suites.

        Raises:
            MeloraError: an option that can't be.
        """
        values = dict(DEFAULTS)
        for name in ("quick",) if args.quick else ():
            values.update(PRESETS[name])
        if args.preset is not None:
            if args.preset not in PRESETS:
                raise MeloraError(f"--preset {args.preset} is not known: choose from {', '.join(PRESETS)}")
            values.update(PRESETS[args.preset])
        own = {name: value for name, value in vars(args).items() if value is not None}
        if "n" in own or "r" in own:
            values["pairs"] = list(itertools.product(own.get("n", [8]), own.get("r", [1])))
        values.update({name: own[name] for name in values if name in own})
        if values["suites"] == ["all"]:
            values["suites"] = known
        options = cls(
            d_out=args.d_out,
            threads=args.threads,
            output=args.output,
            resume=args.resume,
            peers_given="peers" in own,
            **values,
        )
        options.check(known)
        return options

    def check(self, known: list[str]) -> None:
        """Raise MeloraError for a value that no suite can use."""
        _one_of("--suite", self.suites, known)
        _one_of("--dtype", self.dtypes, DTYPES)
        _one_of("--peers", self.peers, PEERS)
        _one_of("--model", self.models, MODELS)
        if self.repetitions < REPETITIONS:
            raise MeloraError(
                f"--repetitions {self.repetitions} is too few to tell noise from cost: {REPETITIONS} or more"
            )
        cores = os.cpu_count() or 1
        if self.threads is not None and not 1 <= self.threads <= cores:
            raise MeloraError(f"--threads must be from 1 to {cores}, this machine's cores; got {self.threads}")
        _check_device(self.device)
        sizes: list[tuple[str, Any]] = [("--n", n) for n, _ in self.pairs] + [("--r", r) for _, r in self.pairs]
        sizes += [("--batch", b) for b in self.batches] + [("--adapters", k) for k in self.adapters]
        sizes += [("--d-in", d) for d in self.d_in] + ([("--d-out", self.d_out)] if self.d_out is not None else [])
        for option, value in sizes:
            positive_int(option, value)
        for tokens in self.tokens:
            if tokens < 1:
                raise MeloraError(f"--tokens must be at least 1, got {tokens}: choose --tokens 2048, say")
        for dropout in self.dropouts:
            if not (math.isfinite(dropout) and 0.0 <= dropout < 1.0):
                raise MeloraError(f"--dropout must be at least 0 and below 1, got {dropout}")
        for (d_in, d_out), (n, r) in itertools.product(self.widths(), self.pairs):
            check_shape(f"bench layer {d_in} -> {d_out}", d_in, d_out, n, r)
        if self.resume and self.output is None:
            raise MeloraError("--resume needs --output: the file or folder whose rows are there already")


def _one_of(option: str, values: list[str], known: Any) -> None:
    for value in values:
        if value not in known:
            raise MeloraError(f"{option} {value} is not known: choose from {', '.join(known)}")


def _check_device(device: str) -> None:
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise MeloraError(f"--device {device} is not known: choose cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise MeloraError(f"--device {device}: PyTorch sees no GPU here: choose cpu, or install its CUDA build")
