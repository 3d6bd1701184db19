"""A study in words, for its report."""

from collections.abc import Sequence

from .about import About
from .record import Record
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
        search=_search(study),
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
        "held out of the training rows; the epoch of every run was chosen on the same rows. The run at the chosen rate "
        "was then made with every seed, and each was scored once on the untouched split."
    )
