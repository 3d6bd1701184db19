"""The questions that `melora bench` can answer, one file each."""

from collections.abc import Callable

from ..peers import Contestant
from ..problem import Problem
from ..row import Environment, Row
from . import layer

# A suite measures one problem in `repetitions` rounds and returns its contestants with a row each.
Suite = Callable[[Problem, int, Environment], tuple[list[Contestant], list[Row]]]

SUITES: dict[str, Suite] = {"layer": layer.measure}
