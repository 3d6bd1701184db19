"""Finding a final answer in a text and comparing it, for exact match."""

import re
from decimal import Decimal, InvalidOperation

_NUMBER = r"-?\$?-?\d[\d,]*(?:\.\d+)?|-?\$?-?\.\d+"
_MARKED = re.compile(rf"####\s*({_NUMBER})")
_ANY = re.compile(_NUMBER)


def final_number(text: str) -> Decimal | None:
    """The number that a GSM8K answer ends in, or None.

    It is the number after the first `####` (what a model writes on after its answer does not count), else the last
    number of the text. Dollar signs, thousands' commas and zeros after the point don't matter.
    """
    marked = _MARKED.search(text)
    found = [marked.group(1)] if marked else _ANY.findall(text)
    if not found:
        return None
    try:
        return Decimal(found[-1].replace(",", "").replace("$", ""))
    except InvalidOperation:
        return None  # such as "--5"


def same_number(answer: str, wanted: str) -> bool:
    """Whether both texts end in the same number; False where either has none."""
    given, right = final_number(answer), final_number(wanted)
    return given is not None and given == right
