"""Saving, loading and exporting the adapter of a 7B model, beside a plain write or read of the same bytes.

PEFT's LoRA of as many parameters saves and loads a file of the same size: what the modules of PEFT cost shows there.
Each action runs in a process of its own (disk_worker.py), whose memory is watched from here. Linux only: /proc.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, cast

import psutil

from ..errors import MeloraError
from .group import Group, row
from .options import Options
from .peers import Peer
from .row import Environment, Facts, Row

ACTIONS = ("save", "load", "export")
# Query and value of Llama-2-7B's 32 layers; rank 16 makes the adapter large beside what Python itself takes.
LAYERS, WIDTH, N, R = 64, 4096, 8, 16
QUICK_LAYERS, QUICK_WIDTH = 2, 128
PLAIN = Peer("plain")


def disk_groups(options: Options) -> list[Group]:
    """One group for each action: the plain write or read, melora's, and where it has one LoRA's."""
    small = options.models == ["tiny"]
    layers, width = (QUICK_LAYERS, QUICK_WIDTH) if small else (LAYERS, WIDTH)
    return [_group(action, layers, width) for action in ACTIONS]


def _group(action: str, layers: int, width: int) -> Group:
    facts = Facts("memory", f"adapter file, {action}", width, width, layers=layers)
    peers = [PLAIN, Peer("melora", N, R, N * R)]
    if action != "export" and width != QUICK_WIDTH:  # a process more, seconds each
        peers.append(Peer("lora", 1, R, R))
    numbers = layers * 2 * width * R
    return Group(
        facts,
        tuple(peers),
        build=list,
        gflop=0.0,
        needs=4 * numbers * (2 + N),
        extra_seconds=15.0 + (40.0 if action == "export" else 5.0) * numbers / 8.4e6,
        measure_instead=lambda repetitions, environment: _measure(facts, peers, repetitions, environment),
    )


def _measure(facts: Facts, peers: list[Peer], repetitions: int, environment: Environment) -> list[Row]:
    rows: list[Row] = []
    for peer in peers[1:]:
        with tempfile.TemporaryDirectory(prefix="melora-bench-", dir=Path.cwd()) as folder:
            answer, peak = _watched(peer, facts, repetitions, folder)
        common = {"adapters": 1, "repetitions": repetitions, "calls": 1, "saved_bytes": answer["bytes"]}
        plain, own = (answer[name] for name in ("plain", "own"))
        if not rows:  # each has its own plain one beside it, which its ratios are to; one is enough to show
            rows.append(row(environment, facts, peers[0], parameters=0, **common, **plain))
        parameters = answer["parameters"]
        rows.append(row(environment, facts, peer, parameters=parameters, peak_bytes=peak, **common, **own))
    return rows


def _watched(peer: Peer, facts: Facts, repetitions: int, folder: str) -> tuple[dict[str, Any], int]:
    """The worker's answer, and by how many bytes its own memory (not the mapped files') grew at most."""
    action = facts.case.rpartition(" ")[2]
    shape = (facts.layers, facts.d_in, peer.n, peer.r, repetitions)
    words = [action, folder, peer.method, *(str(value) for value in shape)]
    command = [sys.executable, "-m", "melora.bench.disk_worker", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        given, said = cast(IO[str], worker.stdin), cast(IO[str], worker.stdout)
        said.readline()  # it has imported and tried everything
        before = peak = _anonymous(worker.pid)
        given.write("go\n")
        given.flush()
        while worker.poll() is None:
            peak = max(peak, _anonymous(worker.pid))
            time.sleep(0.0005)
        text = said.read()
    if worker.returncode:
        raise MeloraError(f"the process that should {action} an adapter in {folder} failed: see its message above")
    answer: dict[str, Any] = json.loads(text)
    return answer, peak - before


def _anonymous(pid: int) -> int:
    """Bytes of a process's memory that are no file's; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        if psutil.LINUX:
            return 0
        raise MeloraError("--suite memory reads /proc, which only Linux has: choose other suites") from None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)
