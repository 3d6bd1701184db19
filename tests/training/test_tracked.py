from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from melora import MeloraError
from melora.training.arguments import check_training
from melora.training.prepare import prepare
from melora.training.recipe import Recipe, parse_recipe
from melora.training.run import train
from melora.training.tasks.regression import Regression
from melora.training.tracked import adapter_facts, adapter_norms

LORA = {"method": "lora", "r": 2, "lora_alpha": 6, "target_modules": ["query"]}
FACTS = {"adapter_n": 4, "adapter_r": 1, "adapter_equivalent_rank": 4, "adapter_parameters": 256}


@pytest.mark.parametrize("method", ["melora", "lora"])
def test_norms_are_those_of_the_whole_matrices(make_recipe: Callable[..., Recipe], method: str) -> None:
    values = make_recipe().to_dict()
    model = prepare(parse_recipe({**values, **({"adapter": LORA} if method == "lora" else {})})).model
    torch.manual_seed(0)
    squares = dict.fromkeys(("A", "B", "dW"), 0.0)
    for name, parameter in model.named_parameters():
        if f"{method}_A" in name or f"{method}_B" in name:
            torch.nn.init.normal_(parameter)
            squares["A" if f"{method}_A" in name else "B"] += float(parameter.detach().square().sum())
    for module in model.modules():
        if hasattr(module, "get_delta_weight"):
            squares["dW"] += float(module.get_delta_weight("default").detach().square().sum())
    found = adapter_norms(model)
    assert found == pytest.approx({f"adapter_norm_{name}": value**0.5 for name, value in squares.items()}, rel=1e-5)


def test_facts_of_modules_that_differ_are_a_range(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(adapter={"n_pattern": {"layer.0.attention.self.query": 8}})
    facts = adapter_facts(prepare(recipe).model)
    assert (facts["adapter_n_min"], facts["adapter_n_max"], facts["adapter_r"]) == (4, 8, 1)


def test_tensorboard_gets_facts_and_norms(make_recipe: Callable[..., Recipe]) -> None:
    run = train(make_recipe(training={"report_to": "tensorboard", "num_train_epochs": 1, "logging_steps": 4})).path
    files = list(run.rglob("events.out.tfevents.*"))  # the last evaluation opens a file of its own
    events = EventAccumulator(str(files[0].parent))
    events.Reload()
    tags = events.Tags()["scalars"]
    for name, value in FACTS.items():
        assert [event.value for event in events.Scalars(f"train/{name}")] == [value]
    assert len(events.Scalars("train/adapter_norm_dW")) == 3
    assert {"train/loss", "eval/pearson", "train/adapter_norm_A", "train/adapter_norm_B"} <= set(tags)


def test_other_trackers_get_the_same(make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import integration_utils

    seen: list[dict[str, Any]] = []

    class Recorder(integration_utils.TrainerCallback):  # type: ignore[misc]
        def on_log(self, *args: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            seen.append(dict(logs))

    installed = lambda: ["wandb", "mlflow", "trackio"]  # noqa: E731
    monkeypatch.setattr("melora.training.trackers.get_available_reporting_integrations", installed)
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", installed)
    for name in installed():
        monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, name, Recorder)
    report_to = ["wandb", "mlflow"]
    train(make_recipe(training={"report_to": report_to, "num_train_epochs": 1, "logging_steps": 4}))
    losses = [event for event in seen if "loss" in event]
    assert len(losses) in (3, 6)  # callbacks of one class may be kept once
    assert FACTS.items() <= losses[0].items()
    assert all(event["adapter_norm_dW"] >= 0 for event in losses)


@pytest.mark.parametrize(
    ("report_to", "message"),
    [("wandbb", "unknown tracker 'wandbb'"), (["comet_ml"], "comet_ml is not installed; run `pip install comet-ml`")],
)
def test_a_tracker_that_is_not_there_is_an_error(report_to: Any, message: str) -> None:
    with pytest.raises(MeloraError, match=message):
        check_training({"report_to": report_to}, Regression)
