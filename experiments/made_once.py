"""A folder that a command of this package makes, unless it is there already."""

import sys
from collections.abc import Callable
from pathlib import Path


def make_once(folder: Path, make: Callable[[], None], expected: tuple[type[Exception], ...], remedy: str) -> int:
    """Make a folder and say so; the command's exit status.

    Args:
        folder: what `make` makes; one that is there is left alone.
        make: makes the whole folder or nothing.
        expected: errors whose message is for the user, on one line, with what to run.
        remedy: what to run.

    Returns:
        0, or 2 after one of the expected errors.
    """
    if folder.exists():
        print(f"there already: {folder}")
        return 0
    try:
        make()
    except expected as error:
        print(f"{error}; run: {remedy}", file=sys.stderr)
        return 2
    print(f"written: {folder}")
    return 0
