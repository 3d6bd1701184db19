from pathlib import Path

import pytest
from PIL import Image

from melora.allocation import Allocation, ModuleAllocation
from melora.training.allocation_plot import plot_allocation


@pytest.mark.parametrize("layers", [1, 3, 100])
@pytest.mark.parametrize("budget", [None, 10**6])
def test_a_panel_for_each_kind_of_module(tmp_path: Path, layers: int, budget: int | None) -> None:
    names = [f"layers.{i}.{leaf}" for i in range(layers) for leaf in ("q", "v")] + ["pooler"]
    modules = tuple(ModuleAllocation(name, 32, 16, 7.5, 4, 1, 48) for name in names)
    plot_allocation(Allocation(modules, budget, 8), "a title", tmp_path / "allocation.png")
    with Image.open(tmp_path / "allocation.png") as picture:
        assert picture.size == (1350, round(150 * (1.0 + 1.7 * 3)))
        shades = {color for _, color in picture.convert("RGB").getcolors(10**6) or []}
        assert {(0x8A, 0x8F, 0x98), (0x1F, 0x6F, 0xB4)} <= shades
    assert [path.name for path in tmp_path.iterdir()] == ["allocation.png"]
