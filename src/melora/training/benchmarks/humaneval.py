"""HumanEval from local rows: lm-eval's own definition, but for its scorer, which lies on the hub."""

import subprocess
import sys
import tempfile
from typing import Any

_SECONDS = 10.0


def passes(program: str) -> bool:
    """Whether a program ends without an error, in a process and an empty folder of its own, within 10 seconds.

    That is no sandbox: the program can do what the user can.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", program],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """pass@1 of one completion."""
    program = f"{doc['prompt']}{results[0]}\n{doc['test']}\ncheck({doc['entry_point']})\n"
    return {"pass@1": float(passes(program))}


HUMANEVAL: dict[str, Any] = {
    "task": "humaneval",
    "dataset_path": "openai/openai_humaneval",
    "unsafe_code": True,
    "output_type": "generate_until",
    "test_split": "test",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{test}}\ncheck({{entry_point}})",
    "process_results": score,
    "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
    "generation_kwargs": {
        "until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
        "max_gen_toks": 1024,
        "do_sample": False,
    },
    "repeats": 1,
    "num_fewshot": 0,
}
