"""Colours and markers: drawn in those of a light page, which the SVG swaps for the page's CSS variables."""

from dataclasses import dataclass

INK, MUTED, LINE, GROUND = "#1b1f24", "#59636e", "#d5dae1", "#fefefe"
METHOD_COLOURS = (
    "#1f6fb4",
    "#b85c00",
    "#2e7d32",
    "#b3362d",
    "#7a4fa3",
    "#00788a",
    "#b0387f",
    "#7a5c2e",
    "#56606b",
    "#6b7300",
)
# What style.css calls them; it gives each a value for a light and for a dark page.
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", GROUND: "--ground"} | {
    colour: f"--method-{i}" for i, colour in enumerate(METHOD_COLOURS)
}
# Not in VARIABLES: a heat map's cells keep their colours, and so does the text on them.
ON_PALE, ON_DEEP = "#010101", "#ffffff"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")


@dataclass(frozen=True)
class Style:
    """How a method is drawn, so that no two are told apart by colour alone."""

    colour: str
    marker: str


def style(place: int) -> Style:
    """The style of the method at this place in the study; it repeats after 90."""
    colours, markers = len(METHOD_COLOURS), len(_MARKERS)
    return Style(METHOD_COLOURS[place % colours], _MARKERS[place % markers])


def deepening(share: float) -> tuple[str, str]:
    """A cell's colour and the text colour that is easier to read on it, from pale (0) to deep (1)."""
    pale, deep = (0xDC, 0xE9, 0xF5), (0x0B, 0x3C, 0x6F)
    mixed = [round(start + share * (end - start)) for start, end in zip(pale, deep, strict=True)]
    fill = "#" + "".join(f"{value:02x}" for value in mixed)
    return fill, max((ON_PALE, ON_DEEP), key=lambda ink: contrast(fill, ink))


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours (#rrggbb), 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
