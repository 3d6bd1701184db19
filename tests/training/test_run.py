import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, TrainerCallback

from melora import MeloraError
from melora.training.base import fingerprint
from melora.training.evaluate import evaluate, restore
from melora.training.folder import RunFolder
from melora.training.guarded import TrainingError
from melora.training.recipe import Recipe, parse_recipe
from melora.training.run import train
from melora.training.trainer import AdapterTrainer


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_run_learns_and_is_complete(trained_run: Path, tiny_model: Path) -> None:
    assert {path.name for path in trained_run.iterdir()} == {
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "results.json",
        "curves.png",
        "adapter",
        "checkpoints",
    }
    assert not trained_run.with_name(trained_run.name + ".partial").exists()
    results = read(trained_run / "results.json")
    assert results["metrics"]["pearson"] > 0.7
    base = AutoModel.from_pretrained(tiny_model).num_parameters()
    # 2 layers x (query, value) x (32 + 32), r = 1; a LoRA of rank n * r = 4 has 4 times as many; 32 weights and a bias
    assert results["parameters"] == {"adapter": 256, "head": 33, "base": base, "lora": 1024}


def test_metrics_are_logged_as_they_come(trained_run: Path) -> None:
    events = [json.loads(line) for line in (trained_run / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events] == sorted(event["step"] for event in events)
    assert sum("eval_pearson" in event for event in events) == 4  # three epochs, and the kept adapter once more
    assert all({"step", "seconds"} <= event.keys() for event in events)


def test_checkpoints_hold_no_base_weights(trained_run: Path) -> None:
    checkpoint = min((trained_run / "checkpoints").iterdir())
    assert (checkpoint / "adapter_model.safetensors").stat().st_size < 10_000
    assert not (checkpoint / "model.safetensors").exists()


def test_the_resolved_recipe_runs_again_to_the_same_weights(trained_run: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((trained_run / "recipe.yaml").read_text())
    again = train(parse_recipe({**values, "output": str(tmp_path / "again")})).path
    first, second = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (trained_run, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_evaluate_repeats_the_score(trained_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    result = evaluate(run, predictions=tmp_path / "predictions.csv")
    assert result["metrics"]["pearson"] == pytest.approx(read(run / "results.json")["metrics"]["pearson"], abs=1e-6)
    assert result == read(run / "evaluation.json")
    values = [float(line) for line in (tmp_path / "predictions.csv").read_text().splitlines()[1:]]
    assert len(values) == 32
    assert 30 < sum(values) / 32 < 70  # in the label's own unit, whose mean is about 50


@pytest.mark.parametrize(("task", "label"), [("classification", "mood"), ("classification", "kind")])
def test_classification(make_recipe: Callable[..., Recipe], task: str, label: str) -> None:
    result = train(make_recipe(task=task, data={"label": label}, training={"num_train_epochs": 2}))
    assert set(result.results["metrics"]) == {"accuracy", "macro_f1", "matthews"}
    assert evaluate(result.path)["metrics"] == pytest.approx(result.results["metrics"])
    card = (result.path / "adapter" / "README.md").read_text()
    assert "id2label" in card


def test_another_method_of_peft(make_recipe: Callable[..., Recipe]) -> None:
    adapter = {"method": "lora", "r": 2, "lora_alpha": 4, "target_modules": ["query"]}
    recipe = parse_recipe({**make_recipe().to_dict(), "adapter": adapter})
    run = train(recipe)
    assert run.results["parameters"]["adapter"] == 2 * 2 * 64
    card = (run.path / "adapter" / "README.md").read_text()
    assert "import melora" not in card
    assert evaluate(run.path)["rows"] == 32


def test_another_base_model_is_refused(trained_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MeloraError, match="has other weights than the one that this adapter was trained on") as caught:
        restore(trained_run, [f"model.name_or_path={other}"])
    assert str(other) in str(caught.value)


def test_the_fingerprint_leaves_the_new_head_out(tiny_model: Path) -> None:
    marks = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(tiny_model)
        marks.add(fingerprint(model, ["classifier"]))
    assert len(marks) == 1


class Stop(TrainerCallback):
    """Ends a run with an error after a number of steps."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.steps = 0

    def at(self, steps: int, error: BaseException | None) -> None:
        self.steps, self.error = steps, error

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.error is not None and state.global_step == self.steps:
            raise self.error


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Stop:
    """In every run of the test; it does nothing until told when."""
    callback, original = Stop(), AdapterTrainer.__init__

    def init(self: AdapterTrainer, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.add_callback(callback)

    monkeypatch.setattr(AdapterTrainer, "__init__", init)
    return callback


def test_an_interrupted_run_goes_on_to_the_same_weights(
    make_recipe: Callable[..., Recipe], trained_run: Path, stop: Stop, tmp_path: Path
) -> None:
    recipe = make_recipe()
    stop.at(20, KeyboardInterrupt())  # of 36, the first of three checkpoints is at 12
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    partial = tmp_path / "run.partial"
    assert partial.is_dir()
    with pytest.raises(MeloraError, match="go on with --resume"):
        RunFolder(recipe)
    with pytest.raises(MeloraError, match="has another seed in its recipe"):
        RunFolder(make_recipe(seed=5), resume=True)
    stop.at(0, None)
    run = train(recipe, resume=True)
    assert run.results["resumed"]
    assert not partial.exists()
    whole, resumed = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (trained_run, run.path))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    steps = [json.loads(line)["step"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_a_run_killed_before_its_first_checkpoint_leaves_nothing(
    make_recipe: Callable[..., Recipe], stop: Stop, tmp_path: Path
) -> None:
    stop.at(3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(make_recipe())
    assert not list(tmp_path.glob("run*"))


def test_overwrite_replaces_a_run_only_when_the_new_one_is_done(
    make_recipe: Callable[..., Recipe], stop: Stop, trained_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    with pytest.raises(MeloraError, match="exists already; choose another output"):
        train(make_recipe())
    stop.at(3, RuntimeError("power cut"))
    with pytest.raises(RuntimeError, match="power cut"):
        train(make_recipe(), overwrite=True)
    assert (run / "results.json").read_text() == (trained_run / "results.json").read_text()
    stop.at(0, None)
    train(make_recipe(seed=1), overwrite=True)
    assert yaml.safe_load((run / "recipe.yaml").read_text())["seed"] == 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".run", "run"))] == ["run"]


def test_overwrite_leaves_what_is_no_run(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(MeloraError, match="is no run of melora, so it is not overwritten"):
        train(make_recipe(), overwrite=True)
    assert (tmp_path / "run" / "thesis.tex").exists()


def test_an_adapter_that_does_not_move_is_a_failure(make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(
        TrainingError, match=r"no adapter weight changed in training: no step had a learning rate above 0"
    ):
        train(make_recipe(training={"max_steps": 1, "warmup_steps": 5}))  # the rate of the first warm-up step is 0


def test_cut_rows_are_reported(
    make_recipe: Callable[..., Recipe], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    result = train(make_recipe(data={"max_length": 6}, training={"max_steps": 2, "eval_strategy": "no"}))
    assert result.results["cut_rows"]["train"] > 0
    assert "rows are longer than data.max_length=6 tokens and are cut" in caplog.text


def test_more_tokens_than_the_model_takes(make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(MeloraError, match=r"data.max_length: 64 is more than the 32 tokens that model .* takes"):
        train(make_recipe(data={"max_length": 64}))


@pytest.mark.parametrize(("file", "told"), [("config.json", "no usable"), ("model.safetensors", "can't be loaded as")])
def test_a_damaged_base_model(
    make_recipe: Callable[..., Recipe], tiny_model: Path, tmp_path: Path, file: str, told: str
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / file).write_text("{}")
    with pytest.raises(MeloraError, match=told) as caught:
        train(make_recipe(model={"name_or_path": str(model)}))
    assert "\n" not in str(caught.value)
    assert str(model) in str(caught.value)
