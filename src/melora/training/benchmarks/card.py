"""Benchmark scores in an adapter's model card: a section of its text, and results in its front matter."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from ..folder import write_text

_START, _END = "<!-- melora: benchmarks -->", "<!-- melora: end of benchmarks -->"
_KIND = "lm-eval"


def add_to_card(path: Path, scored: dict[str, Any]) -> None:
    """Put the scores into the card, in place of those of an earlier evaluation.

    Args:
        path: the adapter's README.md.
        scored: as in benchmarks.json.
    """
    card = ModelCard(path.read_text(encoding="utf-8"))
    data: Any = card.data
    others = [result for result in data.eval_results or [] if result.dataset_type != _KIND]
    data.eval_results = [*others, *(_result(row) for row in scored["scores"])]
    before, _, rest = card.text.partition(_START)
    after = rest.partition(_END)[2]
    card.text = f"{before.rstrip()}\n\n{_section(scored)}\n{after.lstrip()}"
    write_text(path, str(card))


def _result(row: dict[str, Any]) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=_KIND,
        dataset_name=row["task"],
        dataset_config=row["task"],  # huggingface_hub tells results apart by this, not by the name
        metric_type=row["metric"],
        metric_value=row["value"],
    )


def _section(scored: dict[str, Any]) -> str:
    with_base = any("baseline" in row for row in scored["scores"])
    head = ["task", "metric", "shots", "rows", "score", *(["without the adapter"] if with_base else [])]
    limit = f", the first {scored['limit']} rows of each task only" if scored["limit"] is not None else ""
    lines = [
        _START,
        "## Benchmarks",
        "",
        f"By lm-eval {scored['lm_eval']}{', in the chat template' if scored['chat_template'] else ''}{limit}; score "
        "and standard error.",
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
    ]
    lines += [f"| {' | '.join(cells(row, with_base))} |" for row in scored["scores"]]
    return "\n".join([*lines, _END])


def cells(row: dict[str, Any], with_base: bool) -> list[str]:
    """One row of a table of scores."""
    cells = [
        row["task"],
        row["metric"],
        _plain(row["shots"]),
        _plain(row["rows"]),
        _spread(row["value"], row["stderr"]),
    ]
    return [*cells, _spread(row["baseline"], row["baseline_stderr"])] if with_base else cells


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


def _spread(value: float, stderr: float | None) -> str:
    return f"{value:.4f}" if stderr is None else f"{value:.4f} ± {stderr:.4f}"
