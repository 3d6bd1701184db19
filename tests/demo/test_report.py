import io
import json
from pathlib import Path

from demo.report import Score, print_report
from rich.console import Console

RESULTS = {
    "metrics": {"pearson": 0.751, "spearman": 0.7},
    "train_seconds": 93.21,
    "parameters": {"adapter": 9216, "head": 385, "base": 22713601},
    "learning_rate": 0.005,
}


def test_the_table_holds_every_figure(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    scores = [Score.of_run("MELoRA, 8 minis of rank 1", tmp_path), Score("VADER's lexicon", 0.4512, 0.31)]
    output = io.StringIO()
    print_report(Console(file=output, width=120), scores, "caption")
    lines = [" ".join(line.replace("│", " ").split()) for line in output.getvalue().splitlines()]
    assert "MELoRA, 8 minis of rank 1 0.751 9,216 385 0.005 93.2" in lines
    assert "VADER's lexicon 0.451 - - - 0.3" in lines
    assert "caption" in lines
