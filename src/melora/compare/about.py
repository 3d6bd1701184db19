"""What a report says of its study beside the runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """A study's own words and plan.

    Attributes:
        title: heads the report.
        description: plain text, paragraphs apart by empty lines: what was asked, what was made smaller and why.
        reference: the method that others are compared with.
        tasks: names, in the study's order.
        methods: names, in the study's order.
        seeds: of the scored runs.
        rates: learning rates that each method was tried at, by method, ascending.
        search: one sentence on how the learning rate and the epoch were chosen.
        study: the study file, as it was read.
    """

    title: str
    description: str
    reference: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    rates: dict[str, tuple[float, ...]]
    search: str
    study: str
