"""How long a run will take, from the speed of one product on this machine."""

import torch

from .group import Group
from .shapes import DTYPES
from .timing import SHORTEST_TURN, WARM_UP, timed

_WIDTH = 768
# An adapter costs something too, and the widest LoRA of a group about half the base again.
_OVER_BASE = 1.3


def gflops(dtype: str, device: str) -> float:
    """10^9 operations a second of a product of width 768 in this dtype."""
    a = torch.ones(_WIDTH, _WIDTH, dtype=DTYPES[dtype], device=device)
    a @ a
    return 2 * _WIDTH**3 / 1e9 / min(timed(lambda: a @ a, 1) for _ in range(5))


def seconds(group: Group, repetitions: int, speed: float) -> float:
    """Seconds that `group` takes: rough, a factor of two off where calls are short."""
    turns = len(group.peers) * (repetitions + WARM_UP)
    call = group.gflop / speed * _OVER_BASE
    return group.extra_seconds + turns * max(call, SHORTEST_TURN)


def spoken(duration: float) -> str:
    """A duration in the unit that suits it."""
    if duration < 90:
        return f"{duration:.0f} s"
    return f"{duration / 60:.0f} min" if duration < 5400 else f"{duration / 3600:.1f} h"
