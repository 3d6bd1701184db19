"""Runs of one seed see the same rows in the same order, whatever their method: what paired differences rest on."""

from collections.abc import Callable
from typing import Any

import pytest

from melora.compare.jobs import Cell
from melora.compare.space import RATE
from melora.compare.study import Study, parse_study
from melora.compare.worker import make
from melora.training.trainer import AdapterTrainer


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_methods_see_the_same_batches(
    study_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    study_values["base"]["training"]["train_sampling_strategy"] = strategy
    study_values["methods"] |= {
        "head": {"adapter": {"method": "head", "target_modules": None}},
        "gralora": {"adapter": {"method": "gralora", "r": 4, "gralora_k": 2}},
    }
    seen: dict[str, list[Any]] = {}
    step = AdapterTrainer.training_step
    study = parse_study(study_values)
    for method in study.methods:

        def note(self: AdapterTrainer, *args: Any, method: str = method, **kwargs: Any) -> Any:
            inputs = kwargs.get("inputs", args[1] if len(args) > 1 else {})
            seen.setdefault(method, []).append(inputs["input_ids"].tolist())
            return step(self, *args, **kwargs)

        monkeypatch.setattr(AdapterTrainer, "training_step", note)
        make(Cell(study, "rating", method).job({RATE: 0.01}, 3), score=False)
    first, *others = seen.values()
    assert len(first) == 18
    assert all(batches == first for batches in others)


def test_another_seed_is_another_order(make_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[list[Any]] = []
    step = AdapterTrainer.training_step

    def note(self: AdapterTrainer, *args: Any, **kwargs: Any) -> Any:
        orders[-1].append(kwargs.get("inputs", args[1] if len(args) > 1 else {})["input_ids"].tolist())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(AdapterTrainer, "training_step", note)
    for seed in (0, 1):
        orders.append([])
        make(Cell(make_study(), "rating", "lora").job({RATE: 0.01}, seed), score=False)
    assert orders[0] != orders[1]
