"""How long a study will take, from one timed step of each method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..training.timed import StepTime, time_step
from .jobs import Cell, Job
from .known import Known
from .runner import Searches
from .space import RATE
from .study import Study

# What a run's process takes before its first step and after its last, measured here with MiniLM-L6 on 2 cores: imports,
# reading and encoding data, loading the model, saving. A larger model or more rows take longer.
START_SECONDS = 20.0


@dataclass(frozen=True)
class Estimate:
    """What is left of one method on one task.

    Attributes:
        task, method: the study's names.
        runs: to make.
        step_seconds: timed, or scaled from another task's (see `estimate`).
        steps: of one run.
        seconds: of all its runs, one after the other.
    """

    task: str
    method: str
    runs: int
    step_seconds: float
    steps: int
    seconds: float


def estimate(
    study: Study, wanted: Sequence[Cell], searches: Searches, known: Known, say: Callable[[str], None]
) -> list[Estimate]:
    """Time a step of every method on the first task and of the first method on every task, and scale the others.

    Args:
        study: the study.
        wanted: methods and tasks with runs to make.
        searches: the study's.
        known: what is there already.
        say: told what is being timed.
    """
    timed: dict[tuple[str, str], StepTime] = {}

    def take(cell: Cell) -> StepTime:
        key = (cell.task, cell.method)
        if key not in timed:
            say(f"timing a step: {cell.task}, {cell.method}")
            timed[key] = time_step(_job(cell).recipe)
        return timed[key]

    tasks, methods = list(study.tasks), [study.reference, *(m for m in study.methods if m != study.reference)]
    wanted_tasks = [task for task in tasks if any(cell.task == task for cell in wanted)]
    wanted_methods = [method for method in methods if any(cell.method == method for cell in wanted)]
    found = []
    for cell in wanted:
        of_task = take(Cell(study, cell.task, wanted_methods[0]))
        of_method = take(Cell(study, wanted_tasks[0], cell.method))
        first = take(Cell(study, wanted_tasks[0], wanted_methods[0]))
        step = of_task.step_seconds * of_method.step_seconds / first.step_seconds
        evaluation = of_task.evaluation_seconds * of_method.evaluation_seconds / first.evaluation_seconds
        own = _job(cell)
        evaluations = max(1, round(float(own.recipe.training.get("num_train_epochs", 3)))) + 1
        one = START_SECONDS + of_task.steps * step + evaluations * of_task.evaluation_batches * evaluation
        runs = _runs(study, cell, searches, known)
        found.append(Estimate(cell.task, cell.method, runs, step, of_task.steps, runs * one))
    return found


def _runs(study: Study, cell: Cell, searches: Searches, known: Known) -> int:
    search = searches.tpe(cell)
    left = sum(known.needs(job, score=False) for job in searches.jobs(cell, known))
    left += 0 if search is None else search.left()
    setting = searches.setting(cell, known)
    if setting is None:
        return left + len(study.seeds) - 1
    return left + sum(known.needs(job, score=False) for job in cell.chosen(setting))


def _job(cell: Cell) -> Job:
    rates = cell.study.rates(cell.method)
    return cell.job({RATE: rates[0] if rates else 1e-4}, cell.study.seeds[0])
