"""What stands under every table: seeds, learning rates and how the intervals were made."""

from ..statistics_interval import METHOD
from .study import Study
from .text import line, listed, rate

TIE = "A difference whose interval contains 0 is called a tie."


def note(study: Study, *others: str) -> str:
    """Seeds, the grid of learning rates and the interval's method, then other sentences."""
    seeds = study.about.seeds
    told = f"Seeds: {len(seeds)} ({listed(map(str, seeds))})." if seeds else "Seeds: none."
    return " ".join((told, f"Learning rates: {_grid(study)}.", METHOD, *others))


def _grid(study: Study) -> str:
    """0.001, 0.005 for all methods; or each grid with its methods."""
    by_grid: dict[tuple[float, ...], list[str]] = {}
    for method in study.methods:
        by_grid.setdefault(_rates(study, method), []).append(method)
    if len(by_grid) == 1:
        return f"{_shown(next(iter(by_grid)))} for every method"
    return "; ".join(f"{_shown(grid)} for {listed(methods)}" for grid, methods in by_grid.items()) or "none"


def _rates(study: Study, method: str) -> tuple[float, ...]:
    """As planned; where the plan does not say, as found in the runs."""
    found = {record.learning_rate for record in study.records if record.method == method}
    return study.about.rates.get(method) or tuple(sorted(found))


def _shown(grid: tuple[float, ...]) -> str:
    return listed(map(rate, grid)) or "none"


def search(study: Study) -> tuple[str, ...]:
    """The study's sentence on how rates and epochs were chosen, when it has one."""
    return (line(study.about.search),) if study.about.search.strip() else ()
