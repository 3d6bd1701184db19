"""A picture as SVG for the page and as PNG."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from ..parts import Picture
from ..text import line
from .palette import INK, LINE, MUTED, VARIABLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SETTINGS: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
    "text.parse_math": False,  # a method's name may hold a $
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "svg.hashsalt": "melora",  # the same records give the same file
}
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Rendered:
    """A picture's two forms.

    Attributes:
        svg: an element for an HTML page: a name and a description for screen readers, colours as CSS variables, and ids
            that start with the picture's name.
    """

    svg: str
    png: bytes


def render(picture: Picture) -> Rendered:
    """Draw a picture, in both forms."""
    svg, png = io.StringIO(), io.BytesIO()
    with drawn(picture) as figure:
        figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
        figure.set_layout_engine("none")  # it has done its work, which takes as long as a drawing
        figure.savefig(svg, format="svg", transparent=True)
    return Rendered(_for_page(svg.getvalue(), picture), png.getvalue())


@contextmanager
def drawn(picture: Picture) -> Iterator["Figure"]:
    """A picture as a figure, with matplotlib's settings as the report has them for as long as it is used."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS), _any_script():
        figure = Figure(figsize=(picture.width, picture.height), layout="constrained")
        FigureCanvasAgg(figure)
        picture.draw(figure)
        yield figure


@contextmanager
def _any_script() -> Iterator[None]:
    """Names in a script that matplotlib's font lacks become boxes in the PNG, and are right in the page."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        yield


def _for_page(svg: str, picture: Picture) -> str:
    """Matplotlib's file as an element that may stand in a page beside others."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            # Its one style rule would hold for the whole page; style.css has it for pictures.
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        _rename(element, picture.name)
        if "style" in element.attrib:
            for colour, variable in VARIABLES.items():
                element.set("style", element.attrib["style"].replace(colour, f"var({variable})"))
    title, description = f"{picture.name}.title", f"{picture.name}.description"
    for place, (tag, name, text) in enumerate((("title", title, picture.caption), ("desc", description, picture.alt))):
        told = ElementTree.Element(tag, {"id": name})
        told.text = line(text)
        root.insert(place, told)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": title,
        "aria-describedby": description,
    }
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _rename(element: ElementTree.Element, name: str) -> None:
    """Ids, and what points to them, start with the picture's name."""
    if "id" in element.attrib:
        element.set("id", f"{name}.{element.attrib['id']}")
    if _HREF in element.attrib:
        element.set("href", f"#{name}.{element.attrib.pop(_HREF).removeprefix('#')}")
    if "clip-path" in element.attrib:
        element.set("clip-path", element.attrib["clip-path"].replace("url(#", f"url(#{name}."))
