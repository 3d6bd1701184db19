"""The answer in a few sentences: how many runs there are, and how each method stands against the reference."""

from collections import Counter

from ...statistics import Overall
from ...statistics_interval import Verdict
from ..notes import TIE
from ..parts import Section
from ..study import Study
from ..text import amount, count, listed, with_interval

_VERDICTS: dict[Verdict, tuple[str, str]] = {"win": ("win", "wins"), "tie": ("tie", "ties"), "loss": ("loss", "losses")}


def opening(study: Study) -> Section:
    """Counts of runs, then a line for each method."""
    reference = next((row for row in study.overall if row.method == study.reference), None)
    others = [row for row in study.overall if row.method != study.reference and row.verdicts.total()]
    return Section(
        name="summary",
        heading="Summary",
        paragraphs=(_runs(study), _compared(study, others)),
        items=tuple(_against(row, reference) for row in others),
    )


def _runs(study: Study) -> str:
    states = Counter(record.status for record in study.records)
    scored = study.scored_tasks()
    planned = amount(len(study.records), "planned run", "planned runs")
    return (
        f"{states['done']} of {planned} done, {states['failed']} failed, {states['missing']} not run yet. "
        f"{amount(len(study.methods), 'method', 'methods')}, "
        f"{amount(len(study.tasks), 'task', 'tasks')} ({listed(study.tasks) or 'none'}); "
        + (f"{len(scored)} with a score on the untouched split." if scored else "none with a score yet.")
        + _still_to_plan(study)
    )


def _still_to_plan(study: Study) -> str:
    """The runs that no record stands for yet: the other seeds of a setting that a search has still to choose."""
    cells = {(record.task, record.method) for record in study.records if record.status == "missing"}
    searches = len(cells - {(record.task, record.method) for record in study.records if record.chosen})
    seeds = len(study.about.seeds) - 1
    if not searches or seeds < 1:
        return ""
    more = amount(searches * seeds, "more run is", "more runs are")
    return f" At least {more} planned once {amount(searches, 'search has', 'searches have')} ended: the other seeds."


def _compared(study: Study, others: list[Overall]) -> str:
    reference = study.reference
    if not any(summary.scores for own in study.summaries.values() for summary in own if summary.method == reference):
        return f"The reference, {reference}, has no score yet, so nothing is compared with it."
    if not others:
        return f"No other method has a score for a seed that the reference, {reference}, has one for."
    return f"Each method against the reference, {reference}, task by task, seed by seed. {TIE}"


def _against(row: Overall, reference: Overall | None) -> str:
    told = [amount(row.verdicts[verdict], *words) for verdict, words in _VERDICTS.items()]
    if row.verdicts["undecided"]:
        told.append(f"{row.verdicts['undecided']} undecided (too few seeds)")
    text = f"{row.method}: {listed(told)}"
    if row.against is not None:
        text += f"; mean difference {with_interval(row.against.interval, difference=True)}"
        text += "" if row.greater_is_better else " (less is better)"
    if row.parameters is not None:
        text += f"; {count(row.parameters)} adapter parameters"
        if reference is not None and reference.parameters and row.parameters:
            share = row.parameters / reference.parameters
            text += ", as many as the reference" if share == 1 else f", {share:.3g} times the reference's"
    return f"{text}."
