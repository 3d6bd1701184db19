"""A search over a grid of learning rates, whose ends move out as long as the best rate lies at one of them."""

import math

from .choose import best_setting
from .jobs import Cell, Job
from .known import Known
from .space import RATE


def grid_jobs(cell: Cell, known: Known) -> list[Job]:
    """The runs of a cell's search that are known by now, by ascending rate.

    With search.extend, once all of them are over and the best rate is the lowest or the highest of all, the next one
    out is one too: by the step between the two rates at that end, to two digits. A method whose best rate lies outside
    its grid would be compared at a rate that is not its best.
    """
    rates = list(cell.study.rates(cell.method))
    jobs = _jobs(cell, rates)
    for _ in range(cell.study.search.extend):
        best = None if any(known.needs(job, score=False) for job in jobs) else best_setting(jobs, known)
        if best is None or len(rates) < 2 or best[RATE] not in (rates[0], rates[-1]):
            break
        rates = [_out(rates[0], rates[1]), *rates] if best[RATE] == rates[0] else [*rates, _out(rates[-1], rates[-2])]
        jobs = _jobs(cell, rates)
    return jobs


def _jobs(cell: Cell, rates: list[float]) -> list[Job]:
    return [cell.job({RATE: rate}, cell.study.seeds[0]) for rate in rates]


def _out(end: float, inner: float) -> float:
    rate = end * end / inner
    return round(rate, 1 - math.floor(math.log10(rate)))
