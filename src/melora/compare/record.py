"""One run of a study as a row: what the statistics and the report know of it, and what results.parquet holds."""

from dataclasses import dataclass, field
from typing import Literal

Status = Literal["done", "failed", "missing"]


@dataclass(frozen=True)
class Point:
    """One logged line of a run's training curve.

    Attributes:
        step: optimiser steps so far.
        epoch: epochs so far.
        loss: training loss since the last point; None in a validation line.
        validation_loss: None in a training line.
        validation_score: the task's metric on the validation rows; None in a training line.
    """

    step: int
    epoch: float
    loss: float | None = None
    validation_loss: float | None = None
    validation_score: float | None = None


@dataclass(frozen=True)
class Record:
    """One run: a method on a task with a seed and a learning rate.

    Attributes:
        run: the hash of the resolved recipe, and the name of the run's folder.
        task: the study's name for the task.
        method: the study's name for the method.
        peft_method: what the recipe calls it: melora, lora, head, ...
        seed: of the head, the adapter, dropout and the order of the data.
        learning_rate: of the adapter.
        settings: other values that the search varied, by dotted key of the recipe.
        status: done, failed, or missing (planned, and not run yet).
        reason: why it failed, in one line; None unless failed.
        chosen: whether it stands at the setting that the search chose for this method and task, so that it is scored
            on the untouched split and counts.
        metric: the task's first metric.
        greater_is_better: of that metric.
        validation_score: on the rows held out of the training rows, of the epoch that was kept.
        test_score: on the untouched split, once; None unless done and chosen.
        test_metrics: all metrics on the untouched split.
        test_rows, train_rows, validation_rows: how many rows each part has.
        parameters: trainable, without the head's. Of full fine-tuning and the like, the base model's own.
        head_parameters: trainable in modules that the task added.
        base_parameters: frozen ones.
        n, r, equivalent_rank: None for methods that have no such thing, or where modules differ.
        epochs: trained in all.
        best_epoch: the one that was kept.
        steps: optimiser steps.
        train_seconds: time of training with its evaluations.
        step_seconds: median of an optimiser step.
        peak_memory: bytes of the process at its peak, or of the GPU.
        machine: processor and number of cores, or the GPU.
        threads: that computed it.
        date: when it was run (ISO 8601).
        commit: of this repository's code, when there is one.
        recipe: the resolved recipe, as YAML.
        points: the training curve.
    """

    run: str
    task: str
    method: str
    peft_method: str
    seed: int
    learning_rate: float
    metric: str
    greater_is_better: bool
    status: Status = "done"
    settings: dict[str, float | int | str | bool] = field(default_factory=dict)
    reason: str | None = None
    chosen: bool = False
    validation_score: float | None = None
    test_score: float | None = None
    test_metrics: dict[str, float] = field(default_factory=dict)
    test_rows: int | None = None
    train_rows: int | None = None
    validation_rows: int | None = None
    parameters: int | None = None
    head_parameters: int | None = None
    base_parameters: int | None = None
    n: int | None = None
    r: int | None = None
    equivalent_rank: int | None = None
    epochs: float | None = None
    best_epoch: float | None = None
    steps: int | None = None
    train_seconds: float | None = None
    step_seconds: float | None = None
    peak_memory: int | None = None
    machine: str | None = None
    threads: int | None = None
    date: str | None = None
    commit: str | None = None
    recipe: str = ""
    points: tuple[Point, ...] = ()
