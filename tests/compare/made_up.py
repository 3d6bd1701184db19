"""Made-up records of realistic sizes: for tests, and to look at a report. None of these numbers was measured.

PYTHONPATH=src python tests/compare/made_up.py FOLDER
"""

import math
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from melora.compare.about import About
from melora.compare.record import Point, Record
from melora.compare.report import write_report


@dataclass(frozen=True)
class Method:
    """A method of the made-up study: how good it is at best, and the rate at which it is."""

    peft_method: str
    n: int | None
    r: int | None
    parameters: int
    gain: float
    best_rate: float


METHODS = {
    "head": Method("head", None, None, 0, -0.08, 5e-3),
    "LoRA r=8": Method("lora", None, 8, 294_912, 0.0, 1e-3),
    "LoRA r=1": Method("lora", None, 1, 36_864, -0.02, 1e-3),
    "MELoRA 8x1": Method("melora", 8, 1, 36_864, -0.003, 5e-3),
    "MELoRA 4x2": Method("melora", 4, 2, 73_728, 0.002, 5e-3),
    "MELoRA 2x4": Method("melora", 2, 4, 147_456, 0.004, 1e-3),
    "MELoRA 8x8": Method("melora", 8, 8, 294_912, 0.008, 1e-3),
    "GraLoRA": Method("gralora", None, 8, 294_912, 0.001, 1e-3),
}
TASKS = {"glue/rte": ("accuracy", 0.72), "glue/cola": ("mcc", 0.55), "glue/stsb": ("pearson", 0.88)}
RATES = (5e-4, 1e-3, 5e-3)
SEEDS = (0, 1, 2)
RECIPE = """model: {{name_or_path: a-model, dtype: float32}}
task: {task}
adapter: {{method: {method}, lora_alpha: 16, target_modules: [query, value]}}
training: {{num_train_epochs: 5, learning_rate: {rate}, per_device_train_batch_size: 32}}
seed: {seed}
"""


def about(**changes: object) -> About:
    """The plan of the made-up study."""
    plan = About(
        title="MELoRA against LoRA on three GLUE tasks (made up)",
        description="Made-up numbers that show what a report looks like.\n\nNothing was trained.",
        reference="LoRA r=8",
        tasks=tuple(TASKS),
        methods=tuple(METHODS),
        seeds=SEEDS,
        rates=dict.fromkeys(METHODS, RATES),
        search="The rate with the best validation score at seed 0 was taken, then run with every seed.",
        study="methods: [head, lora]\ntasks: [glue/rte]\n",
    )
    return replace(plan, **changes)  # type: ignore[arg-type]  # mypy would have one type for all fields


def record(method: str, task: str, rate: float, seed: int) -> Record:
    """A finished run that is not the chosen one."""
    told, (metric, top) = METHODS[method], TASKS[task]
    dice = random.Random(f"{method} {task} {rate} {seed}")
    final = top + told.gain - 0.04 * abs(math.log10(rate / told.best_rate)) + dice.gauss(0, 0.004)
    points: list[Point] = []
    for epoch in range(1, 6):
        points += [
            Point(80 * epoch - 40, epoch - 0.5, loss=0.9 * 0.75 ** (epoch - 0.5) + dice.gauss(0, 0.01)),
            Point(
                80 * epoch,
                float(epoch),
                validation_loss=0.5 + 0.3 * 0.6**epoch,
                validation_score=final - 0.15 * 0.5**epoch + dice.gauss(0, 0.003),
            ),
        ]
    return Record(
        run=f"{dice.getrandbits(48):012x}",
        task=task,
        method=method,
        peft_method=told.peft_method,
        seed=seed,
        learning_rate=rate,
        metric=metric,
        greater_is_better=True,
        validation_score=final,
        train_rows=2241,
        validation_rows=249,
        parameters=told.parameters,
        head_parameters=592_130,
        base_parameters=124_055_040,
        n=told.n,
        r=told.r,
        equivalent_rank=None if told.r is None else told.r * (told.n or 1),
        epochs=5.0,
        best_epoch=5.0,
        steps=400,
        train_seconds=dice.uniform(300, 420),
        step_seconds=dice.uniform(0.6, 0.8),
        peak_memory=int(dice.uniform(1.8, 2.4) * 2**30),
        machine="a made-up processor, 2 cores",
        threads=2,
        date="2025-01-01T12:00:00+00:00",
        commit="0123abc",
        recipe=RECIPE.format(task=task, method=told.peft_method, rate=rate, seed=seed),
        points=tuple(points),
    )


def as_chosen(run: Record) -> Record:
    """The same run at the chosen setting, scored on the untouched split."""
    assert run.validation_score is not None
    score = run.validation_score - 0.006
    return replace(run, chosen=True, test_score=score, test_metrics={run.metric: score, "loss": 0.41}, test_rows=277)


def without_result(run: Record) -> Record:
    """The same run, before it gave anything."""
    return Record(
        run=run.run,
        task=run.task,
        method=run.method,
        peft_method=run.peft_method,
        seed=run.seed,
        learning_rate=run.learning_rate,
        metric=run.metric,
        greater_is_better=run.greater_is_better,
        recipe=run.recipe,
    )


def failed(run: Record, reason: str = "out of memory after 12 steps") -> Record:
    return replace(without_result(run), status="failed", reason=reason)


def missing(run: Record) -> Record:
    return replace(without_result(run), status="missing")


def records() -> list[Record]:
    """3 tasks, 8 methods, 3 rates at seed 0 and the best rate at 3 seeds; one run failed, one is missing."""
    found = []
    for task in TASKS:
        for method, told in METHODS.items():
            found += [record(method, task, rate, 0) for rate in RATES if rate != told.best_rate]
            found += [as_chosen(record(method, task, told.best_rate, seed)) for seed in SEEDS]
    for i, run in enumerate(found):
        place = (run.method, run.task, run.learning_rate, run.seed)
        if place == ("GraLoRA", "glue/cola", 5e-3, 0):
            found[i] = failed(run)
        if place == ("MELoRA 2x4", "glue/stsb", 1e-3, 2):
            found[i] = missing(run)
    return found


if __name__ == "__main__":
    write_report(Path(sys.argv[1]), about(), records())
