import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from melora.training.evaluate import restore


def card(run: Path) -> tuple[dict[str, Any], str]:
    _, front, text = (run / "adapter" / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_tells_what_was_trained(trained_run: Path, tiny_model: Path) -> None:
    front, text = card(trained_run)
    assert front["library_name"] == "peft"
    assert front["base_model"] == str(tiny_model)
    assert "melora" in front["tags"]
    assert front["metrics"] == ["pearson", "spearman", "mse"]
    for row in (
        "| n (minis) | 4 |",
        "| r (rank of one mini) | 1 |",
        "| equivalent rank | 4 |",
        "| alpha | 8 |",
        "| adapter parameters | 256 |",
        "| LoRA of equal rank would have | 1,024 |",
        "| seed | 0 |",
        "| learning rate | 0.02 |",
    ):
        assert row in text
    assert "KeyError: 'MELORA'" in text
    assert "melora export RUN --to lora" in text


def test_the_cards_lines_reload_the_adapter(trained_run: Path) -> None:
    _, text = card(trained_run)
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    code = found[1].replace('adapter = "adapter"', f"adapter = {str(trained_run / 'adapter')!r}")
    names: dict[str, Any] = {}
    exec(code, names)
    restored = restore(trained_run)
    with torch.no_grad():
        logits = restored.with_adapter()(**restored.tokenizer("a text", return_tensors="pt")).logits
    # The card's lines keep gradients, and without them a few tokens take sums in another order.
    torch.testing.assert_close(names["logits"], logits, rtol=1e-5, atol=1e-6)
    assert names["prediction"] == pytest.approx(restored.task.predictions(logits.numpy())["prediction"][0], rel=1e-5)
