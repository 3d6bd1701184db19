"""A study in words, for its report."""

from collections.abc import Mapping, Sequence
from typing import Any

from .about import About
from .jobs import cells
from .record import Record
from .space import RATE
from .study import Study


def about(study: Study, records: Sequence[Record], text: str) -> About:
    """What the report says of the study beside its runs.

    Args:
        study: the study.
        records: its runs; the rates that a search came upon are theirs.
        text: the study file.
    """
    rates = {
        method: tuple(sorted({row.learning_rate for row in records if row.method == method} or study.rates(method)))
        for method in study.methods
    }
    return About(
        title=study.title,
        description=study.description,
        reference=study.reference,
        tasks=tuple(study.tasks),
        methods=tuple(study.methods),
        seeds=tuple(study.seeds),
        rates=rates,
        search=f"{_search(study)} {_epochs(study)}",
        study=text,
    )


def _search(study: Study) -> str:
    if study.search.sampler == "tpe":
        how = (
            f"by Optuna's TPE sampler in {study.search.trials} trials for each method and task (sampler seed "
            f"{study.search.seed})"
        )
    else:
        grown = f", grown by up to {study.search.extend} where the best was at its end" if study.search.extend else ""
        how = f"from a grid, one run for each value{grown},"
    return (
        f"The learning rate was chosen for each method and task {how} with seed {study.seeds[0]}, by the score on rows "
        "held out of the training rows. The run at the chosen rate was then made with every seed, and each was scored "
        "once on the untouched split."
    )


def _epochs(study: Study) -> str:
    rates = {method: (study.rates(method) or (1.0,))[0] for method in study.methods}
    trainings = [cell.job({RATE: rates[cell.method]}, study.seeds[0]).recipe.training for cell in cells(study)]
    kept = {_keeps_best(training) for training in trainings}
    if kept == {True}:
        return "The epoch of every run was chosen on the held-out rows."
    if kept == {False}:
        return "No epoch was chosen: every run counts as it was after its last step."
    return "Runs whose recipe scores epochs keep the one that was best on the held-out rows, the others the last."


def _keeps_best(training: Mapping[str, Any]) -> bool:
    """Whether a run keeps its best epoch: by default it does (training_arguments)."""
    scores = str(training.get("eval_strategy", "epoch")) not in ("no", "False")
    return bool(training.get("load_best_model_at_end", scores))
