"""A model of 30 thousand parameters, data that it can learn, and runs trained on them; used by tests/cli too."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from melora.training.recipe import Recipe, parse_recipe
from melora.training.run import train

GOOD, BAD, PLAIN = ["good", "great", "fine"], ["bad", "awful", "dull"], ["the", "film", "is", "a", "plot", "and"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT of two layers, without a head, and its tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "tiny-bert"
    words = [*SPECIAL, *GOOD, *BAD, *PLAIN]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lively_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with weights ten times as large: gradients of one direction alone become gradients of many."""
    folder = tmp_path_factory.mktemp("model") / "lively-bert"
    model = AutoModel.from_pretrained(tiny_model)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            if parameter.dim() == 2:
                parameter.mul_(10)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.parquet (96 rows) and validation.parquet (32): text, rating (a number), mood (a name), kind (0 or 1)."""
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(0)
    for name, rows in (("train", 96), ("validation", 32)):
        table: dict[str, list[Any]] = {"text": [], "rating": [], "mood": [], "kind": []}
        for _ in range(rows):
            good = draw.random() < 0.5
            words = draw.sample(GOOD if good else BAD, draw.randint(1, 3))
            text = draw.sample(PLAIN, draw.randint(1, 6)) + words
            table["text"].append(" ".join(draw.sample(text, len(text))))
            table["rating"].append((10.0 if good else -10.0) * len(words) + 50.0)
            table["mood"].append("good" if good else "bad")
            table["kind"].append(int(good))
        pyarrow.parquet.write_table(pyarrow.table(table), folder / f"{name}.parquet")
        pyarrow.csv.write_csv(pyarrow.table(table), folder / f"{name}.csv")
    return folder


@pytest.fixture
def recipe_values(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> dict[str, Any]:
    """A recipe that trains in about a second, as plain values; its output is tmp_path/run."""
    return tiny_recipe(tiny_model, tiny_data, tmp_path / "run")


@pytest.fixture
def recipe_file(recipe_values: dict[str, Any], tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_values))
    return file


@pytest.fixture
def make_recipe(recipe_values: dict[str, Any]) -> Callable[..., Recipe]:
    """A Recipe with sections changed: make_recipe(training={...}, task="classification")."""

    def make(**changes: Any) -> Recipe:
        merged = {
            key: {**value, **changes.get(key, {})} if isinstance(value, dict) else changes.get(key, value)
            for key, value in recipe_values.items()
        }
        return parse_recipe(merged)

    return make


@pytest.fixture(scope="session")
def trained_run(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished regression run; tests must not change it (copy it for that)."""
    return train(parse_recipe(tiny_recipe(tiny_model, tiny_data, tmp_path_factory.mktemp("runs") / "tiny"))).path


@pytest.fixture(scope="session")
def steady_recipe(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A classification recipe without dropout, whose random numbers would differ with the batches; 8 rows a step.

    29 rows to validate: of two ranks with batches of 8, one gets 8 and the other 5 of the last 13.
    """
    folder = tmp_path_factory.mktemp("steady")
    model = AutoModel.from_pretrained(tiny_model, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder / "model")
    rows = pyarrow.parquet.read_table(tiny_data / "validation.parquet").slice(0, 29)
    pyarrow.parquet.write_table(rows, folder / "validation.parquet")
    recipe = tiny_recipe(folder / "model", tiny_data, folder / "one")
    recipe["task"] = "classification"
    recipe["data"] |= {"validation": str(folder / "validation.parquet"), "label": "mood"}
    recipe["training"] |= {"num_train_epochs": 8, "per_device_eval_batch_size": 8, "logging_steps": 1}
    del recipe["training"]["use_cpu"]  # FSDP takes what is there
    return recipe


@pytest.fixture(scope="session")
def steady_run(steady_recipe: dict[str, Any]) -> Path:
    """A finished run of it; tests must not change it."""
    return train(parse_recipe(steady_recipe)).path


def tiny_recipe(model: Path, data: Path, output: Path) -> dict[str, Any]:
    return {
        "model": {"name_or_path": str(model)},
        "task": "regression",
        "data": {
            "train": str(data / "train.parquet"),
            "validation": str(data / "validation.parquet"),
            "text": ["text"],
            "label": "rating",
            "max_length": 16,
        },
        "adapter": {"method": "melora", "r": 1, "n": 4, "lora_alpha": 8, "target_modules": ["query", "value"]},
        "training": {
            "num_train_epochs": 3,
            "learning_rate": 0.02,
            "per_device_train_batch_size": 8,
            "use_cpu": True,
        },
        "seed": 0,
        "output": str(output),
    }


def plain_recipe(model: Path, data: Path, method: str, output: Path) -> dict[str, Any]:
    """Of a method that trains without an adapter: head, bias or full."""
    recipe = tiny_recipe(model, data, output)
    recipe["training"]["learning_rate"] = {"head": 0.03, "bias": 0.05, "full": 0.005}[method]
    return {**recipe, "adapter": {"method": method}}


@pytest.fixture(scope="session")
def plain_runs(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each of these methods, by name; tests must not change them (copy them for that)."""
    folder = tmp_path_factory.mktemp("plain")
    recipes = {name: plain_recipe(tiny_model, tiny_data, name, folder / name) for name in ("head", "bias", "full")}
    return {name: train(parse_recipe(recipe)).path for name, recipe in recipes.items()}


@pytest.fixture
def plain_values(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """The recipe of such a run by its method's name, as plain values; its output is tmp_path/run."""
    return lambda method: plain_recipe(tiny_model, tiny_data, method, tmp_path / "run")


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """4-bit weights stay as they are.

    bitsandbytes 0.50 repacks them on CPUs with AVX512-BF16, and then fails for inputs narrower than a block
    of 64 numbers, which the tiny model has and no real one.
    """
    modules = pytest.importorskip("bitsandbytes.nn.modules", reason="bitsandbytes is not installed")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: False)
