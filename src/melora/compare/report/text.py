"""Numbers and names as a report writes them."""

import math
import re
from collections.abc import Iterable

from ..statistics_interval import Interval

ABSENT = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
# Neither XML nor a terminal takes these; an error message or a recipe may hold them.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def line(value: str) -> str:
    """A text in one line, without what can't be shown."""
    return " ".join(_CONTROL.sub(" ", value).split())


def block(value: str) -> str:
    """A text with its lines as they are, without what can't be shown."""
    return _CONTROL.sub(" ", value)


def number(value: float | None) -> str:
    """A score or a time, to as many digits as are of use at its size."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("" if value > 0 else _MINUS) + "infinite"
    size = abs(value)
    digits = 4 if size < 10 else 2 if size < 1000 else 0
    return f"{value:,.{digits}f}".replace("-", _MINUS)


def signed(value: float | None) -> str:
    """A difference, its sign always written."""
    text = number(value)
    return f"+{text}" if value is not None and value > 0 else text


def with_interval(interval: Interval | None, *, difference: bool = False) -> str:
    """A mean and, where there is one, its interval: 0.9123 [0.9100, 0.9150]."""
    if interval is None:
        return ABSENT
    shown = signed if difference else number
    if interval.low is None or interval.high is None:
        return shown(interval.mean)
    return f"{shown(interval.mean)} [{shown(interval.low)}, {shown(interval.high)}]"


def count(value: float | None) -> str:
    """A whole number; a mean of whole numbers is rounded."""
    return ABSENT if value is None else f"{round(value):,}"


def short_count(value: float) -> str:
    """A number of parameters on an axis: 600k, 1.2M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def rate(value: float) -> str:
    """A learning rate: 0.001, 5e-05."""
    return f"{value:g}"


def duration(seconds: float | None) -> str:
    """A time in the unit that suits it."""
    if seconds is None:
        return ABSENT
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def memory(size: int | None) -> str:
    """Bytes in MiB."""
    return ABSENT if size is None else f"{size / 2**20:,.0f} MiB"


def amount(number: int, one: str, many: str) -> str:
    """1 win, 2 wins."""
    return f"{number} {one if number == 1 else many}"


def listed(names: Iterable[str]) -> str:
    """Names with commas between."""
    return ", ".join(names)


def slugs(names: Iterable[str]) -> dict[str, str]:
    """Name -> lower-case letters, digits and hyphens, fit for a file's name and an id; no two are the same."""
    found: dict[str, str] = {}
    for name in names:
        stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "task"
        slug, i = stem, 1
        while slug in found.values():
            i += 1
            slug = f"{stem}-{i}"
        found[name] = slug
    return found
