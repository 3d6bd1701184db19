from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from melora.training.curves import plot_curves
from melora.training.tasks.regression import Regression

LOSS = [{"epoch": step / 4, "loss": 1 - step / 10} for step in range(1, 9)]
SCORES = [{"epoch": epoch, "eval_loss": 0.5, "eval_pearson": 0.7 + epoch / 100} for epoch in (1.0, 2.0)]


@pytest.mark.parametrize("history", [LOSS + SCORES, LOSS, SCORES[:1]])
def test_a_picture_whatever_was_logged(tmp_path: Path, history: list[dict[str, Any]]) -> None:
    plot_curves(history, Regression(0, 1), "a title", 2.0, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1350, 540)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
