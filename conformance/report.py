"""The results of both modes as one page."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

_HEADER = """\
# PEFT's own tests on MELoRA

Written by `make conformance`: do not edit. It fetches PEFT's source archive by name and version, puts MELoRA in LoRA's
place and runs PEFT's tests; conformance/__init__.py says how. Models come from conformance/tiny_models.py, not from the
hub.
"""

_MODES = {
    "melora": "MELORA in LoRA's rows of every parametrisation: PEFT sees a method that it does not know.",
    "lora-name": "The name LoraConfig bound to MELoRA: the gates that PEFT opens for LoRA alone are open.",
}


def summary_line(result: Mapping[str, Any]) -> str:
    """E.g. "mode melora: 400 passed, 0 failed, 8 skipped, 3000 left out"."""
    counts = Counter(entry["outcome"] for entry in result["outcomes"].values())
    left_out = sum(result["left_out"].values())
    numbers = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
    return f"mode {result['mode']}: {numbers}, {left_out} left out"


def render(results: Sequence[Mapping[str, Any]], versions: Mapping[str, str]) -> str:
    """The whole page in Markdown."""
    parts = [_HEADER, ", ".join(f"{name} {version}" for name, version in versions.items()) + ".\n"]
    for result in results:
        parts += [f"## Mode {result['mode']}\n", _MODES[result["mode"]] + "\n", _counts(result), _reasons(result)]
    return "\n".join(parts)


def _counts(result: Mapping[str, Any]) -> str:
    files: dict[str, Counter[str]] = defaultdict(Counter)
    for test, entry in result["outcomes"].items():
        files[test.partition("::")[0].removeprefix("tests/")][entry["outcome"]] += 1
    rows = [[name, *(str(files[name][key]) for key in ("passed", "failed", "skipped"))] for name in files]
    total = sum(files.values(), Counter[str]())
    rows.append(["**all**", *(f"**{total[key]}**" for key in ("passed", "failed", "skipped"))])
    return _table(["file", "passed", "failed", "skipped"], rows)


def _reasons(result: Mapping[str, Any]) -> str:
    parts = []
    for outcome, heading in (("failed", "Failed"), ("skipped", "Skipped, and why")):
        tests: dict[str, set[str]] = defaultdict(set)
        counts: Counter[str] = Counter()
        for test, entry in result["outcomes"].items():
            if entry["outcome"] == outcome:
                reason = group(entry["reason"])
                counts[reason] += 1
                tests[reason].add(test.partition("[")[0].rpartition("::")[2])
        if counts:
            rows = [[str(n), reason, _some(sorted(tests[reason]))] for reason, n in _sorted(counts)]
            parts += [f"{heading}:\n", _table(["cases", "reason", "tests"], rows)]
    for key, heading, unit in (
        ("left_out", "Left out before the run", "tests"),
        ("lora_only_rows", "Rows of LoRA taken out of parametrisations (those of other methods are, too)", "rows"),
    ):
        if result[key]:
            rows = [[str(n), reason] for reason, n in _sorted(Counter(result[key]))]
            parts += [f"{heading}:\n", _table([unit, "reason"], rows)]
    return "\n".join(parts)


def group(reason: str) -> str:
    """A skip's reason without what differs from case to case (class paths), on one line."""
    reason = re.sub(r"<class '[\w.]*\.(\w+)'>", r"\1", " ".join(reason.split()))
    return reason.replace("StandIn", "MeloraConfig").replace("|", "\\|")


def _sorted(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _some(tests: Sequence[str]) -> str:
    return ", ".join(tests[:3]) + (f" and {len(tests) - 3} more" if len(tests) > 3 else "")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
