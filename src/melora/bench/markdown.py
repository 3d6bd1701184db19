"""Result files as Markdown tables, each MELoRA row with what it should reach and whether it does."""

from collections.abc import Iterable, Mapping

from .targets import TARGETS, verdict

Rows = list[dict[str, str]]
# What the rows of one run share; a group measured twice, on two machines or commits, is two groups.
_RUN = ("date", "commit", "machine", "device", "threads")
_COLUMNS = {
    "parameters": "parameters",
    "ms": "ms_p50",
    "x first, min": "ratio_min",
    "p50": "ratio_p50",
    "p20": "ratio_p20",
    "p80": "ratio_p80",
    "bytes kept": "saved_bytes",
    "bytes, peak": "peak_bytes",
}


def report(rows: Iterable[Mapping[str, str]]) -> str:
    """Markdown: a section for each suite and run, a table for each group.

    Args:
        rows: of store.read_rows.
    """
    parts: list[str] = []
    for (suite, *run), of_run in split(rows, ("suite", *_RUN)).items():
        date, commit, machine, device, threads = run
        first = of_run[0]
        parts.append(f"## {suite.capitalize()}\n")
        parts.append(
            f"{machine}, {device}, {threads} threads, torch {first['torch']}, PEFT {first['peft']}, commit {commit}, "
            f"{date[:16]} UTC, load before the run {float(first['load']):.1f}.\n"
        )
        parts.append(f"Target: {TARGETS[suite]}.\n")
        verdicts = []
        for (_, group_title), group in split(of_run, ("case", "title")).items():
            judged = [verdict(row, group) for row in group]
            verdicts += [text for text in judged if text]
            parts.append(f"**{group_title}**, {group[-1]['repetitions']} repetitions\n")
            parts.append(_table(group, judged))
        passed = sum(text.startswith("pass") for text in verdicts)
        parts.append(f"{passed} of {len(verdicts)} rows reach the target.\n")
    return "\n".join(parts)


def split(rows: Iterable[Mapping[str, str]], by: tuple[str, ...]) -> dict[tuple[str, ...], Rows]:
    """Rows by the values of some columns, in the order in which they first come."""
    found: dict[tuple[str, ...], Rows] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in by), []).append(dict(row))
    return found


def _table(group: Rows, judged: list[str]) -> str:
    shown = {heading: name for heading, name in _COLUMNS.items() if any(row[name] for row in group)}
    lines = [
        "| contestant | " + " | ".join(shown) + " | target |",
        "|---|" + "--:|" * len(shown) + "---|",
    ]
    for row, text in zip(group, judged, strict=True):
        cells = " | ".join(_cell(name, row[name]) for name in shown.values())
        lines.append(f"| {row['label']} | {cells} | {text} |")
    return "\n".join(lines) + "\n"


def _cell(name: str, text: str) -> str:
    if not text:
        return ""
    if name.startswith("ratio"):
        return f"{float(text):.3f}"
    return f"{float(text):.3g}" if name.startswith("ms") else f"{int(text):,}"
