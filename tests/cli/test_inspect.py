import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("part", ["", "adapter"])
def test_inspect_measures_every_layer(melora: Callable[..., Any], trained_run: Path, part: str) -> None:
    done = melora("inspect", trained_run / part)
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines() if "attention.self" in line]
    assert len(rows) == 4
    assert rows[0][:8] == ["bert.encoder.layer.0.attention.self.query", "32", "x", "32", "4", "1", "4", "4"]
    assert "MELORA: 256 parameters in 4 modules; a LoRA of equal rank has 1,024, 4 times as many" in done.out
    assert "(head, biases): 33" in done.out


def test_json(melora: Callable[..., Any], trained_run: Path) -> None:
    report = json.loads(melora("inspect", trained_run, "--json").out)
    assert report["parameters"] == 256
    assert len(report["layers"]) == 4
    assert 1 <= report["layers"][0]["effective_rank"] <= 4
