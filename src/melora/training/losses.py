"""The course of the training loss: a learning rate that diverges is told from one bad batch."""

from collections import deque
from collections.abc import Mapping
from statistics import fmean, pstdev
from typing import Any

_FIRST, _RECENT = 5, 20  # steps
_CLEARLY, _FAR = 1.25, 3.0  # times the loss at the start
_AT_ONCE = 3.0  # times the first step's loss
_LEAST = 0.05  # a loss this close to the start's is noise, however small that was


class LossTrend:
    """Mean loss of the first 5 and of the latest 20 steps, in the loss's own unit."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.recent: deque[float] = deque(maxlen=_RECENT)

    def add(self, loss: float) -> None:
        """Take the loss of one step."""
        if len(self.first) < _FIRST:
            self.first.append(loss)
        else:
            self.recent.append(loss)

    @property
    def start(self) -> float | None:
        """Of the first step alone, if the next ones are far from it already; None before the first step."""
        if not self.first:
            return None
        mean = fmean(self.first)
        return self.first[0] if mean > _AT_ONCE * self.first[0] else mean

    @property
    def end(self) -> float | None:
        """None until there are more than 5 steps."""
        return fmean(self.recent) if self.recent else None

    def ended_above(self) -> bool:
        """Whether the latest steps are clearly above the first: a quarter, and four standard errors."""
        if self.start is None or self.end is None or len(self.recent) < _FIRST:
            return False
        rise = self.end - self.start
        noise = pstdev(self.recent) / len(self.recent) ** 0.5
        return self.end > _CLEARLY * self.start and rise > max(_LEAST, 4 * noise)

    def is_far_above(self) -> bool:
        """Whether the latest 20 steps are at three times the first or more, on the average."""
        full = len(self.recent) == _RECENT
        return full and self.ended_above() and (self.end or 0.0) > _FAR * (self.start or 0.0)

    def rise(self) -> tuple[float, float] | None:
        """(first loss, last loss) where the last is twice the first or more: the way to a loss that is not finite."""
        losses = [*self.first, *self.recent]
        if len(losses) < 2 or losses[-1] < max(2 * losses[0], losses[0] + _LEAST):
            return None
        return losses[0], losses[-1]

    def state(self) -> dict[str, list[float]]:
        """Plain values for a checkpoint."""
        return {"first": self.first, "recent": list(self.recent)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.first = list(state["first"])
        self.recent = deque(state["recent"], maxlen=_RECENT)


def lower_rate(rate: float) -> str:
    """The learning rate that diverged and the one to try, as the recipe says it."""
    return f"the learning rate {rate:g} diverged; try training.learning_rate={rate / 10:.1g}"
