"""A picture in both of its forms, and what is drawn where."""

import io
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from PIL import Image

from melora.compare.report.drawing.front import Dot, draw_front
from melora.compare.report.drawing.heat import draw_heat
from melora.compare.report.drawing.lines import Sensitivity, draw_rates
from melora.compare.report.drawing.palette import INK, style
from melora.compare.report.drawing.render import drawn, render
from melora.compare.report.parts import Picture
from melora.compare.statistics_interval import Interval

STYLES = {method: style(i) for i, method in enumerate(("one", "two", "three"))}


def a_line(figure: Figure) -> None:
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=STYLES["two"].colour, marker="o")
    axes.set_title("a title")


PICTURE = Picture("a-name", "what it shows", "what it says & <more>", a_line, height=2.0, width=3.0)


def test_both_forms() -> None:
    drawn = render(PICTURE)
    with Image.open(io.BytesIO(drawn.png)) as png:
        assert png.size == (480, 320)
        assert png.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    svg = ElementTree.fromstring(drawn.svg)
    assert svg.attrib == {
        "viewBox": "0 0 216 144",
        "role": "img",
        "aria-labelledby": "a-name.title",
        "aria-describedby": "a-name.description",
    }
    assert [(element.tag, element.text) for element in list(svg)[:2]] == [
        ("title", "what it shows"),
        ("desc", "what it says & <more>"),
    ]
    ids = [element.attrib["id"] for element in svg.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids)) > 10
    assert all(name.startswith("a-name.") for name in ids)
    assert {element.attrib["href"][1:] for element in svg.iter() if "href" in element.attrib} <= set(ids)
    styles = " ".join(element.attrib.get("style", "") for element in svg.iter())
    assert "stroke: var(--method-1)" in styles
    assert "fill: var(--ink)" in styles
    assert INK not in styles
    assert "a title" in [element.text for element in svg.iter() if element.tag == "text"]


def test_the_same_picture_is_the_same_file() -> None:
    assert render(PICTURE) == render(PICTURE)


def test_settings_of_matplotlib_are_left_as_they_were() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    render(PICTURE)
    assert dict(matplotlib.rcParams) == before


def drawn_at(figure: Figure, colour: str) -> list[tuple[float, float]]:
    """The points that are drawn as markers of this colour."""
    lines = [line for line in figure.axes[0].lines if line.get_color() == colour and line.get_marker() != "None"]
    return [(float(x), float(y)) for line in lines for x, y in zip(*line.get_data(), strict=True)]


def test_dots_with_their_intervals_and_the_front() -> None:
    figure = Figure()
    dots = [
        Dot("one", 100, Interval(0.5, 0.4, 0.6, 3)),
        Dot("two", 1000, Interval(0.7, None, None, 2)),
        Dot("three", 2000, Interval(0.6, 0.5, 0.7, 3)),
    ]
    draw_front(figure, "title", dots, [0, 1], STYLES, "score")
    (axes,) = figure.axes
    assert {method: drawn_at(figure, own.colour) for method, own in STYLES.items()} == {
        "one": [(100, 0.5)],
        "two": [(1000, 0.7)],
        "three": [(2000, 0.6)],
    }
    front, rings = axes.lines[:2]
    assert list(front.get_xdata()) == list(rings.get_xdata()) == [100, 1000]
    assert front.get_drawstyle() == "steps-post"
    spans = [segment.tolist() for lines in axes.collections for segment in lines.get_segments()]
    assert spans == [[[100, 0.4], [100, 0.6]], [[2000, 0.5], [2000, 0.7]]]
    assert axes.get_xscale() == "log"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["one", "two", "three"]


@pytest.mark.parametrize("others", [[], [100, 1000]])
def test_no_parameters_stand_left_of_all_others_under_a_0(others: list[int]) -> None:
    figure = Figure()
    dots = [Dot(method, size, Interval(0.5, None, None, 1)) for method, size in zip(STYLES, [0, *others], strict=False)]
    draw_front(figure, "title", dots, [0], STYLES, "score")
    (axes,) = figure.axes
    ((place, _),) = drawn_at(figure, STYLES["one"].colour)
    labels = {tick.get_text(): tick.get_position()[0] for tick in axes.get_xticklabels()}
    assert labels["0"] == pytest.approx(place)
    low, high = axes.get_xlim()
    assert 0 < low < place < min([*others, high])


def test_rates_with_the_chosen_and_the_failed_ones() -> None:
    figure = Figure()
    lines = {"one": Sensitivity([(1e-4, 0.5), (1e-3, 0.6)], 1e-3, [1e-2])}
    draw_rates(figure, "title", lines, STYLES, "score")
    (axes,) = figure.axes
    curve, ring, cross = axes.lines
    assert curve.get_xydata().tolist() == [[1e-4, 0.5], [1e-3, 0.6]]
    assert ring.get_xydata().tolist() == [[1e-3, 0.6]]
    assert (cross.get_marker(), list(cross.get_xdata())) == ("x", [1e-2])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.0001", "0.001", "0.01"]


def test_labels_of_near_rates_do_not_lie_on_each_other() -> None:
    def draw(figure: Figure) -> None:
        three = Sensitivity([(rate, 0.5) for rate in (3e-4, 1e-3, 3e-3)], 1e-3, [])
        near = Sensitivity([(rate, 0.6) for rate in (3.3e-4, 1e-3, 2.7e-3, 9e-3)], 1e-3, [])
        draw_rates(figure, "title", {"one": three, "two": three, "three": near}, STYLES, "score")

    with drawn(Picture("rates", "", "", draw)) as figure:
        figure.draw_without_rendering()
        (axes,) = figure.axes
        labels = axes.get_xticklabels()
        assert [label.get_text() for label in labels] == ["0.0003", "0.001", "0.003", "0.009"]
        boxes = [label.get_window_extent() for label in labels]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


@pytest.mark.parametrize("greater", [True, False])
def test_the_best_cell_is_the_deepest(greater: bool) -> None:
    from matplotlib.colors import to_rgb

    figure = Figure()
    scores = {(8, 1): 0.1, (4, 2): 0.5, (8, 2): 0.9}
    draw_heat(figure, "title", scores, greater_is_better=greater)
    (axes,) = figure.axes
    brightness = [sum(to_rgb(patch.get_facecolor())) for patch in axes.patches]
    assert brightness == sorted(brightness, reverse=greater)
    assert len(set(brightness)) == 3
    assert [text.get_text() for text in axes.texts] == ["0.1000", "n r = 8", "0.5000", "n r = 8", "0.9000", "n r = 16"]
    places = {(patch.get_x() + 0.5, patch.get_y() + 0.5) for patch in axes.patches}
    assert places == {(0, 1), (1, 0), (1, 1)}
