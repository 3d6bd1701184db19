"""Runs PEFT's tests on MELoRA in both modes and writes docs/conformance.md."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft

from .fetch import fetch_tests
from .plugin import MODES
from .report import render, summary_line
from .tiny_models import make_cache

ROOT = Path(__file__).resolve().parent.parent
FILES = (
    "test_custom_models.py",
    "test_decoder_models.py",
    "test_encoder_decoder_models.py",
    "test_seq_classifier.py",
    "test_feature_extraction_models.py",
    "test_config.py",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache", help="where PEFT's tests and tiny models go")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "conformance.md", help="the file to write")
    parser.add_argument("pytest_args", nargs="*", help="arguments for pytest, after --; the report is not written then")
    args = parser.parse_args()

    peft_root = fetch_tests(peft.__version__, args.cache.resolve() / "peft")
    hub = make_cache(args.cache.resolve() / "conformance-hub")
    results = [run(mode, peft_root, hub, args.pytest_args) for mode in MODES]
    for result in results:
        print(summary_line(result))
    if not args.pytest_args:
        args.report.write_text(render(results, versions()), encoding="utf-8")
        print(f"wrote {args.report}")
    return int(any(entry["outcome"] == "failed" for result in results for entry in result["outcomes"].values()))


def run(mode: str, peft_root: Path, hub: Path, pytest_args: list[str]) -> dict[str, Any]:
    """One pytest process in one mode; returns what the plugin wrote down."""
    file = hub.parent / f"conformance-{mode}.json"
    file.unlink(missing_ok=True)
    environment = os.environ | {
        "HF_HUB_CACHE": str(hub),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "conformance" / "pytest.ini")]
    command += [f"--rootdir={peft_root}", "-p", "conformance.plugin"]
    command += [f"--melora-mode={mode}", f"--melora-results={file}"]
    command += pytest_args or [f"tests/{name}" for name in FILES]
    subprocess.run(command, cwd=peft_root, env=environment, check=False)
    if not file.is_file():
        raise RuntimeError(f"pytest ended without results in mode {mode}: see its messages above")
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return result


def versions() -> dict[str, str]:
    """What the numbers of the report were made with."""
    import torch
    import transformers

    import melora

    modules = (melora, peft, transformers, torch)
    return {"Python": ".".join(map(str, sys.version_info[:3])), **{m.__name__: m.__version__ for m in modules}}


if __name__ == "__main__":
    sys.exit(main())
