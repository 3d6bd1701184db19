import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from transformers import AutoTokenizer

from melora import MeloraError
from melora.training.data import Split, read_splits
from melora.training.evaluate import evaluate
from melora.training.recipe import Recipe, parse_recipe
from melora.training.run import train
from melora.training.tasks import TASKS, task_class
from melora.training.tasks.glue import Cola, Mrpc, Qqp, Stsb
from melora.training.tasks.mnli import Mnli

# As the data set card of nyu-mll/glue and its glue.py give them: columns, then classes by their number.
OFFICIAL: dict[str, tuple[list[str], list[str]]] = {
    "cola": (["sentence"], ["unacceptable", "acceptable"]),
    "sst2": (["sentence"], ["negative", "positive"]),
    "mrpc": (["sentence1", "sentence2"], ["not_equivalent", "equivalent"]),
    "qqp": (["question1", "question2"], ["not_duplicate", "duplicate"]),
    "mnli": (["premise", "hypothesis"], ["entailment", "neutral", "contradiction"]),
    "qnli": (["question", "sentence"], ["entailment", "not_entailment"]),
    "rte": (["sentence1", "sentence2"], ["entailment", "not_entailment"]),
    "wnli": (["sentence1", "sentence2"], ["not_entailment", "entailment"]),
}
METRICS = {
    "cola": ("matthews",),
    "sst2": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
    "qqp": ("accuracy", "f1"),
    "mnli": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
}
SHARED = Path(__file__).parents[4] / "shared" / "data" / "glue"


def split(labels: list[Any], name: str = "train") -> Split:
    return Split(name, Path("x.parquet"), [("a",)] * len(labels), labels)


def recipe_of(task: str, **data: Any) -> Recipe:
    return parse_recipe({"model": {"name_or_path": "m"}, "task": f"glue/{task}", "data": data, "output": "runs/x"})


def test_every_task_of_glue_is_there_with_its_metrics() -> None:
    found = {name.removeprefix("glue/"): cls for name, cls in TASKS.items() if name.startswith("glue/")}
    assert {name: cls.metric_names for name, cls in found.items()} == METRICS
    assert all(cls.primary == METRICS[name][0] for name, cls in found.items())


@pytest.mark.parametrize("name", OFFICIAL)
def test_columns_and_classes_are_the_official_ones(name: str) -> None:
    columns, classes = OFFICIAL[name]
    data = recipe_of(name).data
    assert (data.text_columns, data.path, data.subset) == (columns, "nyu-mll/glue", name)
    task = task_class(f"glue/{name}").fit(split(list(range(len(classes)))))
    assert task.model_config()["id2label"] == dict(enumerate(classes))
    assert type(task).from_state(task.state()).model_config() == task.model_config()


def test_the_data_section_can_be_written_and_read_again_and_changed() -> None:
    recipe = recipe_of("mnli", max_train_rows=10)
    assert (recipe.data.train, recipe.data.validation) == ("train", "validation_matched")
    assert parse_recipe(recipe.to_dict()) == recipe
    assert recipe_of("rte", text=["premise", "hypothesis"]).data.text_columns == ["premise", "hypothesis"]


def test_a_label_is_a_number_or_a_name_and_its_number_does_not_depend_on_the_rows() -> None:
    task = Mrpc.fit(split([1, 0, "equivalent"]))
    assert task.targets(split([1, "not_equivalent"])) == [1, 0]
    assert Mnli.fit(split([2, 0])).targets(split([2])) == [2]  # class 1 is in no row
    assert task.predictions(np.array([[0.0, 1.0]]))["prediction"] == ["equivalent"]


@pytest.mark.parametrize(
    ("task", "labels", "told"),
    [
        ("rte", [0, 1, -1], "row 3: label -1 is none of glue/rte's: 0 (entailment), 1 (not_entailment); GLUE hides"),
        ("rte", [0, 2], "row 2: label 2 is none of glue/rte's"),
        ("rte", [0, True], "row 2: label True is none of glue/rte's"),
        ("rte", [0, 0], "every label is 'entailment', so there is nothing to tell apart"),
        ("stsb", [1.0, -1.0], "row 2: label -1.0 is not from 0 to 5; GLUE hides the test split's labels"),
        ("stsb", [1.0, 7.0], "row 2: label 7.0 is not from 0 to 5"),
    ],
)
def test_labels_that_the_task_has_not(task: str, labels: list[Any], told: str) -> None:
    cls = task_class(f"glue/{task}")
    with pytest.raises(MeloraError) as caught:
        cls.fit(split(labels)).targets(split(labels))  # type: ignore[attr-defined]
    assert told in str(caught.value)


def confusion(labels: np.ndarray, predicted: np.ndarray) -> tuple[int, int, int, int]:
    pairs = list(zip(labels.tolist(), predicted.tolist(), strict=True))
    return pairs.count((1, 1)), pairs.count((0, 1)), pairs.count((1, 0)), pairs.count((0, 0))


@pytest.mark.parametrize("seed", range(5))
def test_scores_of_two_classes_against_their_formulas(seed: int) -> None:
    draw = np.random.default_rng(seed)
    labels, logits = (draw.random(200) < 0.7).astype(int), draw.normal([0.0, 0.4], size=(200, 2))
    true_pos, false_pos, false_neg, true_neg = confusion(labels, logits.argmax(-1))
    scores = Qqp.fit(split([0, 1])).metrics(logits, labels)
    assert scores["accuracy"] == pytest.approx((true_pos + true_neg) / 200)
    assert scores["f1"] == pytest.approx(2 * true_pos / (2 * true_pos + false_pos + false_neg))
    products = (true_pos + false_pos) * (true_pos + false_neg) * (true_neg + false_pos) * (true_neg + false_neg)
    wanted = (true_pos * true_neg - false_pos * false_neg) / math.sqrt(products)
    assert Cola.fit(split([0, 1])).metrics(logits, labels)["matthews"] == pytest.approx(wanted)


def test_f1_is_of_class_1_and_scores_of_constant_predictions_are_finite() -> None:
    labels, ones, zeros = np.array([0, 0, 0, 1]), np.tile([0.0, 1.0], (4, 1)), np.tile([1.0, 0.0], (4, 1))
    task = Mrpc.fit(split([0, 1]))
    assert task.metrics(ones, labels) == {"accuracy": 0.25, "f1": pytest.approx(0.4)}
    assert task.metrics(zeros, labels) == {"accuracy": 0.75, "f1": 0.0}
    assert Cola.fit(split([0, 1])).metrics(zeros, labels) == {"matthews": 0.0}


def test_correlations_against_their_formulas() -> None:
    draw = np.random.default_rng(0)
    labels = draw.random(100) * 5
    predicted = labels + draw.normal(size=100)
    scores = Stsb.fit(split(labels.tolist())).metrics(predicted[:, None], labels)

    def pearson(a: np.ndarray, b: np.ndarray) -> float:
        a, b = a - a.mean(), b - b.mean()
        return float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))

    assert scores["pearson"] == pytest.approx(pearson(predicted, labels))
    assert scores["spearman"] == pytest.approx(pearson(predicted.argsort().argsort(), labels.argsort().argsort()))
    assert tuple(scores) == Stsb.metric_names


@pytest.fixture
def mnli_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "glue" / "mnli"
    folder.mkdir(parents=True)
    words = ["good film", "bad plot", "the film is dull"]
    for name, rows, shift in (("train", 24, 0), ("validation_matched", 9, 0), ("validation_mismatched", 10, 1)):
        labels = [(row + shift) % 3 for row in range(rows)]
        columns = {"premise": ["a film"] * rows, "hypothesis": [words[row % 3] for row in range(rows)], "label": labels}
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"{name}.parquet")
    return folder.parent


def test_mnli_is_scored_on_both_splits(make_recipe: Callable[..., Recipe], mnli_folder: Path, tmp_path: Path) -> None:
    values = make_recipe().to_dict()
    values["task"] = "glue/mnli"
    values["data"] = {"path": str(mnli_folder), "max_length": 16}
    values["training"].update(max_steps=6, eval_strategy="steps", eval_steps=3)
    done = train(parse_recipe(values))
    other = done.results["mismatched"]
    assert done.results["rows"]["validation"] == 9
    assert other["rows"] == 10
    again = evaluate(done.path)
    assert again["mismatched"] == other
    # The same rows by the way that every run is scored.
    alone = evaluate(done.path, data=mnli_folder / "mnli" / "validation_mismatched.parquet")
    assert alone["metrics"]["accuracy"] == pytest.approx(other["accuracy"])
    assert "mismatched" not in alone
    assert "| accuracy on 10 mismatched rows |" in (done.path / "adapter" / "README.md").read_text()


def test_a_missing_mismatched_split_is_told_before_training(mnli_folder: Path, tiny_model: Path) -> None:
    (mnli_folder / "mnli" / "validation_mismatched.parquet").unlink()
    spec = recipe_of("mnli", path=str(mnli_folder)).data
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    matched = Split("validation", mnli_folder / "mnli" / "validation_matched.parquet", [("a", "b")], [0])
    with pytest.raises(MeloraError, match="no file validation_mismatched with an ending of"):
        Mnli(list(Mnli.class_names)).encode(matched, tokenizer, spec)


@pytest.mark.parametrize("task", ["cola", "mrpc", "rte", "stsb", "sst2"])
def test_real_rows(task: str) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"no GLUE data in {SHARED}")
    rows = read_splits(recipe_of(task, path=str(SHARED)).data)
    fitted = task_class(f"glue/{task}").fit(rows[0])
    assert len(fitted.targets(rows[1])) == len(rows[1])  # type: ignore[attr-defined]
