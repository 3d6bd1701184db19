"""The kinds of training, by the name that a recipe's `task` gives."""

from ...errors import MeloraError
from ..schema import nearest
from .base import Encoded, Task
from .causal_lm import CausalLM
from .classification import Classification
from .glue import Cola, Mrpc, Qnli, Qqp, Rte, Sst2, Stsb, Wnli
from .mnli import Mnli
from .regression import Regression

__all__ = ["TASKS", "Encoded", "Task", "task_class"]

_GLUE = (Cola, Sst2, Mrpc, Stsb, Qqp, Mnli, Qnli, Rte, Wnli)
TASKS: dict[str, type[Task]] = {cls.name: cls for cls in (Classification, Regression, CausalLM, *_GLUE)}


def task_class(name: str) -> type[Task]:
    """The task of this name.

    Raises:
        MeloraError: there is none; what there is, is listed.
    """
    if name not in TASKS:
        raise MeloraError(f"task: unknown task {name!r}; there is {', '.join(TASKS)} ({nearest(name, TASKS)})")
    return TASKS[name]
