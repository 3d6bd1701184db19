"""The report's sections in their order."""

from .parts import Fold, Page, Section
from .sections.all_tasks import all_tasks
from .sections.costs import costs
from .sections.curves import curves
from .sections.equal import equal
from .sections.front import front
from .sections.grid import grid
from .sections.opening import opening
from .sections.rates import rates
from .sections.runs import runs
from .sections.scores import scores
from .study import Study
from .text import block, line


def page_of(study: Study) -> Page:
    """The whole report of a study."""
    sections = (opening, front, scores, equal, all_tasks, grid, rates, curves, costs, runs, _plan)
    paragraphs = map(line, block(study.about.description).split("\n\n"))
    return Page(
        title=line(study.about.title) or "Comparison",
        introduction=tuple(paragraph for paragraph in paragraphs if paragraph),
        sections=tuple(section for write in sections if (section := write(study)) is not None),
    )


def _plan(study: Study) -> Section:
    fold = Fold("study-file", "The study file, as it was read", (), block(study.about.study), "Study file")
    return Section("study", "Study file", folds=(("", (fold,)),))
