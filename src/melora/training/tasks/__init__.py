"""The kinds of training, by the name that a recipe's `task` gives."""

from ...errors import MeloraError
from ..schema import nearest
from .base import Encoded, Task
from .classification import Classification
from .regression import Regression

__all__ = ["TASKS", "Encoded", "Task", "task_class"]

TASKS: dict[str, type[Task]] = {cls.name: cls for cls in (Classification, Regression)}


def task_class(name: str) -> type[Task]:
    """The task of this name.

    Raises:
        MeloraError: there is none; what there is, is listed.
    """
    if name not in TASKS:
        raise MeloraError(f"task: unknown task {name!r}; there is {', '.join(TASKS)} ({nearest(name, TASKS)})")
    return TASKS[name]
