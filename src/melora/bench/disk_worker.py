"""python -m melora.bench.disk_worker ACTION FOLDER METHOD LAYERS WIDTH N R REPETITIONS: one process of disk.py.

Says "ready" when everything is imported, waits for a line, then works and answers in JSON.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from ..adapter_files import WEIGHTS_FILE
from ..conversion import export_lora
from ..loading import load_adapter
from .attach import Stack
from .peers import Peer
from .timing import interleave


def base(layers: int, width: int) -> nn.Module:
    """Layers without numbers: only the adapter is real."""
    return Stack([nn.Linear(width, width, bias=False, device="meta") for _ in range(layers)]).requires_grad_(False)


def adapted(layers: int, width: int, peer: Peer) -> PeftModel:
    """The base under an adapter of random numbers."""
    model: PeftModel = get_peft_model(base(layers, width), peer.config(0.0, ["proj"]))
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad:
                setattr(module, name, nn.Parameter(torch.randn(parameter.shape)))
    return model


def actions(
    action: str, folder: Path, layers: int, width: int, peer: Peer
) -> tuple[Callable[[], object], Callable[[], object], Path, int]:
    """(the plain write or read, the method's action, the file whose bytes both move, parameters), all run once."""
    adapter, output, plain = folder / "adapter", folder / "output", folder / "plain"
    model = adapted(layers, width, peer)
    load: Callable[..., object] = load_adapter if peer.method == "melora" else PeftModel.from_pretrained
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if action != "save":
        model.save_pretrained(str(adapter))
        del model
    own: dict[str, Callable[[], object]] = {
        "save": lambda: model.save_pretrained(str(output)),
        "load": lambda: load(base(layers, width), adapter, low_cpu_mem_usage=True),
        "export": lambda: _export(adapter, output),
    }
    own[action]()
    file = (adapter if action == "load" else output) / WEIGHTS_FILE
    if action == "load":
        return file.read_bytes, own[action], file, parameters
    size = file.stat().st_size
    block = bytes(min(size, 2**20))
    return lambda: _write(plain, block, size), own[action], file, parameters


def _export(adapter: Path, output: Path) -> None:
    shutil.rmtree(output, ignore_errors=True)
    export_lora(adapter, output)


def _write(file: Path, block: bytes, size: int) -> None:
    """As many bytes, to a new file, a MiB at a time; not waited for, as melora's action isn't either."""
    with file.open("wb") as out:
        for start in range(0, size, len(block)):
            out.write(block[: size - start])


def main(action: str, folder: str, method: str, layers: int, width: int, n: int, r: int, repetitions: int) -> None:
    trial = Path(folder, "trial")
    trial.mkdir()
    for step in actions(action, trial, 1, 8 * n, Peer(method, n, 1, n))[:2]:
        step()
    print("ready", flush=True)
    sys.stdin.readline()
    work = Path(folder, "work")
    work.mkdir()
    plain, own, file, parameters = actions(action, work, layers, width, Peer(method, n, r, n * r))
    timings, _ = interleave([plain, own], repetitions)
    answer = {"parameters": parameters, "bytes": os.path.getsize(file)}
    print(json.dumps({**answer, "plain": asdict(timings[0]), "own": asdict(timings[1])}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
