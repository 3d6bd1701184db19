"""Export of a plain transformers model: the adapter added into the base weights."""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel

from ..conversion import new_folder
from ..errors import MeloraError
from ..loading import load_adapter, read_adapter
from .base import load_base, load_tokenizer
from .data import read_validation
from .evaluate import restore
from .folder import ADAPTER, RECIPE
from .gguf import load_gguf
from .places import described, is_at_hand
from .recipe import ModelSpec
from .saved import TASK, load_task
from .source import ModelSource, find_model

_ROWS = 64  # rows that the drift is measured on
_LANGUAGE_ROWS = 4  # of language models, whose outputs are a vocabulary wide at every token
_RANDOM_LENGTH = 32
_AUTO_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
_HEAD_WEIGHTS = ("classifier.weight", "score.weight", "classifier.out_proj.weight")


@dataclass(frozen=True)
class MergedExport:
    """What `export_merged` wrote.

    Attributes:
        path: the model's folder.
        drift: the largest absolute difference between an output of base model plus adapter and of the written model,
            loaded again.
        scale: the largest absolute output, to judge the drift by.
        measured_on: the inputs that it was measured on.
    """

    path: Path
    drift: float
    scale: float
    measured_on: str


@dataclass(frozen=True)
class _Parts:
    """What goes with the model: all but the model itself, which must be free to go while these stay."""

    source: ModelSource
    tokenizer: Any
    batches: list[dict[str, torch.Tensor]]
    measured_on: str
    task_file: Path | None


def export_merged(path: str | Path, output: str | Path, *, allow_quantized: bool = False) -> MergedExport:
    """Write base model plus adapter as one plain transformers model with its tokenizer.

    Args:
        path: a run folder, or an adapter folder that names its base model.
        output: the folder to make; it must not exist.
        allow_quantized: merge into quantised weights, which rounds the adapter's update.

    Raises:
        MeloraError: the adapter or run is damaged, the base model is not found or another one, it is quantised, or
            `output` exists. Nothing is written then.
    """
    path, output = Path(path), Path(output)
    if output.exists():
        raise MeloraError(f"{output}: exists already; choose another folder with --output, or remove it first")
    model, parts = _load_run(path) if (path / RECIPE).is_file() else _load_adapter_folder(path)
    if getattr(model.config, "quantization_config", None) is not None and not allow_quantized:
        raise MeloraError(
            f"{path}: its base model {parts.source.name} is quantised, and merging rounds the adapter's update to the "
            "quantised grid; export --to lora instead, or pass --allow-quantized and check the drift"
        )
    before = _outputs(model, parts.batches)
    merged = model.merge_and_unload(safe_merge=True)
    cls, dtype = type(merged), merged.dtype
    with new_folder(output) as folder:
        merged.save_pretrained(folder)
        parts.tokenizer.save_pretrained(folder)
        if parts.task_file is not None:
            (folder / TASK).write_bytes(parts.task_file.read_bytes())
        del merged, model
        gc.collect()  # the written model is loaded next, and need not stand beside this one
        after = _outputs(cls.from_pretrained(folder, dtype=dtype).eval(), parts.batches)
    drift = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    return MergedExport(output, drift, max(float(a.abs().max()) for a in before), parts.measured_on)


def _load_run(path: Path) -> tuple[PeftModel, _Parts]:
    restored = restore(path)
    spec, task, tokenizer = restored.recipe.data, restored.task, restored.tokenizer
    model = restored.with_adapter()
    if is_at_hand(spec):
        rows = task.encode(read_validation(spec), tokenizer, spec).examples[: _rows(model)]
        batch = dict(task.collator(tokenizer)(rows))
        batch.pop("labels")
        batches, measured_on = [batch], f"{len(rows)} validation rows"
    else:
        absent = described(spec, "validation")
        batches, measured_on = _random_batches(model), f"{_rows(model)} random inputs ({absent} is not there)"
    return model, _Parts(restored.source, tokenizer, batches, measured_on, path / ADAPTER / TASK)


def _load_adapter_folder(path: Path) -> tuple[PeftModel, _Parts]:
    files = read_adapter(path)
    name = files.config.base_model_name_or_path
    if not name:
        raise MeloraError(f"{path}: its adapter_config.json names no base model; set base_model_name_or_path in it")
    spec = ModelSpec(name)
    source = find_model(spec)
    task_file = path / TASK if (path / TASK).is_file() else None
    if task_file is not None:
        base = load_base(source, spec, load_task(path)).model
    else:
        base = _load_untold(source, str(files.config.task_type), files.shapes)
    model = load_adapter(base, path).eval()
    parts = _Parts(source, load_tokenizer(source), _random_batches(model), f"{_rows(model)} random inputs", task_file)
    return model, parts


def _load_untold(source: ModelSource, task_type: str, shapes: dict[str, tuple[int, ...]]) -> Any:
    """The base model of an adapter that melora did not train, from its config's task_type and its head's size."""
    options = dict(source.options)
    if task_type == "SEQ_CLS":
        heads = [shape[0] for key, shape in shapes.items() if key.endswith(_HEAD_WEIGHTS)]
        options.update({"num_labels": heads[-1]} if heads else {})
    auto_class = _AUTO_CLASSES.get(task_type, "AutoModel")
    if "gguf_file" in options:
        return load_gguf(auto_class, source.path, torch.float32, options, on_meta=False)
    cls = getattr(transformers, auto_class)
    return cls.from_pretrained(source.path, **options)


def _rows(model: PeftModel) -> int:
    return _LANGUAGE_ROWS if model.peft_config["default"].task_type == "CAUSAL_LM" else _ROWS


def _random_batches(model: PeftModel) -> list[dict[str, torch.Tensor]]:
    """Inputs for a model without data: the same random tokens every time."""
    size = model.get_input_embeddings().num_embeddings
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(size, (_rows(model), _RANDOM_LENGTH), generator=draw)
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]


def _outputs(model: Any, batches: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
    """The first output (logits, or hidden states of a model without a head) for every batch, in fp32."""
    with torch.no_grad():
        return [model(**batch)[0].float() for batch in batches]
