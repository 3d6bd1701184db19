"""A search by Optuna's TPE sampler, kept in its storage: an interrupted one goes on, several machines share one."""

import hashlib
import json
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import MeloraError
from ..training.schema import one_line
from ..training.tasks import task_class
from .jobs import Cell, Job
from .process import Halt
from .space import RATE, Range, spaces
from .study import Study

_HEARTBEAT = 30  # seconds; a trial whose process is silent for four of them is taken up by another


def open_storage(study: Study, *, make: bool = True) -> Any:
    """The study's Optuna storage.

    Args:
        study: the study.
        make: make an SQLite storage's file if there is none; otherwise an empty storage stands for it.

    Raises:
        MeloraError: Optuna is missing, or the storage can't be reached.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        raise MeloraError(
            "search.sampler: tpe needs Optuna, which is not installed; run `pip install 'melora[compare]'`"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    own = Path(study.output).expanduser().absolute() / "optuna.db"
    url = study.search.storage or f"sqlite:///{own}"
    if not make and (_is_missing_file(url) if study.search.storage else not own.exists()):
        return optuna.storages.InMemoryStorage()
    try:
        with _experiments_allowed():
            return optuna.storages.RDBStorage(
                url,
                heartbeat_interval=_HEARTBEAT,
                grace_period=4 * _HEARTBEAT,
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
            )
    except Exception as error:  # whatever its database's driver raises
        shown = url.rsplit("@", 1)[-1]  # no password in a message
        raise MeloraError(
            f"search.storage: {shown} can't be opened ({one_line(error)[:200]}); check the URL and that the database "
            "is up, e.g. sqlite:///search.db or postgresql://USER:PASSWORD@HOST/NAME"
        ) from None


class TpeSearch:
    """One method's search on one task.

    Args:
        cell: the method and the task.
        storage: from `open_storage`.
    """

    def __init__(self, cell: Cell, storage: Any) -> None:
        import optuna

        self.cell = cell
        self.space = spaces(cell.study.search, cell.study.rates(cell.method))
        recipe = cell.job({RATE: 1.0}, cell.study.seeds[0])
        better = task_class(recipe.recipe.task).greater_is_better
        self._optuna = optuna.create_study(
            storage=storage,
            study_name=f"{cell.task} {cell.method} {self._mark(recipe)}",
            direction="maximize" if better else "minimize",
            load_if_exists=True,
        )
        with _experiments_allowed():
            self._optuna.sampler = optuna.samplers.TPESampler(seed=self._seed(), constant_liar=True)

    def jobs(self) -> list[Job]:
        """The runs of all settings tried so far, each once, in the order in which they came up."""
        found: dict[str, Job] = {}
        for trial in self._optuna.trials:
            if set(trial.params) == set(self.space):
                job = self.cell.job(trial.params, self.cell.study.seeds[0])
                found.setdefault(job.run, job)
        return list(found.values())

    def left(self) -> int:
        """How many settings are still to be tried."""
        import optuna

        states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        return max(0, self.cell.study.search.trials - len(self._optuna.get_trials(deepcopy=False, states=states)))

    def go(self, score: Callable[[Job], float | None], parallel: int) -> None:
        """Try settings until the study's number of trials is reached, by this and other machines together.

        Args:
            score: makes a run and returns its validation score; None if it failed.
            parallel: trials at a time.

        Raises:
            Halt: `score` raised it; the setting will be tried again.
        """
        import optuna

        if not self.left():
            return

        def objective(trial: Any) -> float:
            setting = {key: _suggest(trial, key, where) for key, where in self.space.items()}
            try:
                value = score(self.cell.job(setting, self.cell.study.seeds[0]))
            except Halt:
                self._optuna.enqueue_trial(trial.params)
                raise
            if value is None:
                raise optuna.TrialPruned  # the sampler takes a pruned trial for a bad one
            return value

        states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        stop = optuna.study.MaxTrialsCallback(self.cell.study.search.trials, states=states)
        self._optuna.optimize(objective, n_trials=self.left(), n_jobs=min(parallel, self.left()), callbacks=[stop])

    def _seed(self) -> int:
        """Of the sampler: another one when a search goes on, and on each machine that shares a storage.

        With one and the same, each would draw the settings once more that were tried first.
        """
        search = self.cell.study.search
        told: list[int | str] = [search.seed, len(self._optuna.get_trials(deepcopy=False))]
        if search.storage is not None and not search.storage.startswith("sqlite:"):
            told += [socket.gethostname(), os.getpid()]
        return search.seed if told[1:] == [0] else int(_digest(told), 16)

    def _mark(self, job: Job) -> str:
        """Tells a search from one of the same name in an earlier version of the study file."""
        return _digest([job.run, {key: repr(where) for key, where in self.space.items()}])


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _is_missing_file(url: str) -> bool:
    """Whether it is an SQLite file that is not there, of a folder that is."""
    file = Path(url.removeprefix("sqlite:///"))
    return url.startswith("sqlite:///") and not file.exists() and file.parent.is_dir()


@contextmanager
def _experiments_allowed() -> Iterator[None]:
    """Optuna calls heartbeats (since its 2.8) and the constant liar experimental; nothing else does their work."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _suggest(trial: Any, key: str, where: Range | list[Any]) -> Any:
    if isinstance(where, list):
        return trial.suggest_categorical(key, where)
    if where.whole:
        return trial.suggest_int(key, int(where.low), int(where.high), log=where.log)
    return trial.suggest_float(key, where.low, where.high, log=where.log)
