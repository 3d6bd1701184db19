"""Colours that can be told apart from the page and each other, on light pages and dark ones."""

import re
from pathlib import Path

import pytest

import melora.compare.report
from melora.compare.report.drawing.palette import METHOD_COLOURS, VARIABLES, contrast, deepening, style

CSS = (Path(melora.compare.report.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
LIGHT, DARK = (dict(re.findall(r"(--[a-z0-9-]+): (#[0-9a-f]{6});", part)) for part in CSS.split("@media (prefers")[:2])


def test_contrast_by_wcags_own_examples() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)
    assert contrast("#123456", "#123456") == 1


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_text_and_drawings_stand_out_from_the_page(colours: dict[str, str]) -> None:
    assert LIGHT.keys() == DARK.keys() >= set(VARIABLES.values())
    for name in ("--ink", "--muted", "--link", "--win", "--loss"):
        assert contrast(colours[name], colours["--page"]) >= 4.5
        assert contrast(colours[name], colours["--raised"]) >= 4.5
    for i in range(len(METHOD_COLOURS)):
        assert contrast(colours[f"--method-{i}"], colours["--page"]) >= 3


def test_pngs_have_the_colours_of_a_light_page() -> None:
    assert all(contrast(colour, LIGHT[variable]) < 1.02 for colour, variable in VARIABLES.items())


def test_text_on_every_cell_of_a_heat_map_can_be_read() -> None:
    for i in range(101):
        assert contrast(*deepening(i / 100)) >= 4.5


def test_no_two_of_90_methods_look_the_same() -> None:
    assert len({style(i) for i in range(90)}) == 90
    assert style(90) == style(0)
