"""Loading the base model, finding its new modules, and recognising it again."""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from ..errors import MeloraError
from .gguf import DAMAGED, load_gguf
from .quantized import prepare_quantized, quantization_config, quantized_names
from .recipe import ModelSpec
from .schema import one_line
from .source import ModelSource
from .tasks import Task

_HEADS = ("classifier", "score")  # what PEFT itself takes for the head of a sequence classifier
_SAMPLE = 64


@dataclass(frozen=True)
class Base:
    """A loaded base model.

    Attributes:
        source: where it came from.
        model: the model, with the task's head.
        new_modules: names of the modules that the checkpoint had no weights for: they must be trained and saved.
    """

    source: ModelSource
    model: Any
    new_modules: list[str]


def load_tokenizer(source: ModelSource) -> Any:
    """The base model's tokenizer.

    Raises:
        MeloraError: it has none that transformers can read.
    """
    try:
        return transformers.AutoTokenizer.from_pretrained(source.path, **source.options)
    except (OSError, ValueError, *DAMAGED) as error:
        raise MeloraError(f"model {source.name}: no usable tokenizer: {one_line(error)}") from None


def longest_input(source: ModelSource, tokenizer: Any) -> int:
    """How many tokens the base model takes.

    Raises:
        MeloraError: its config can't be read.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(source.path, **source.options)
    except (OSError, ValueError, *DAMAGED) as error:
        raise MeloraError(f"model {source.name}: no usable config.json: {one_line(error)[:300]}") from None
    limit = int(tokenizer.model_max_length)
    return min(limit, getattr(config, "max_position_embeddings", None) or limit)


def load_base(source: ModelSource, spec: ModelSpec, task: Task, *, on_meta: bool = False) -> Base:
    """Load the base model with the task's head; torch's random state decides a new head's weights.

    Args:
        source: where it is.
        spec: the recipe's model section.
        task: decides the class of the model and the size of its head.
        on_meta: shapes only, no weights: for a dry run.

    Raises:
        MeloraError: the checkpoint is damaged, or there is no such head for this kind of model.
    """
    quantization = quantization_config(spec)
    if "gguf_file" in source.options:
        if quantization is not None:
            raise MeloraError(
                f"model.quantization: {source.name} is a GGUF file, which is read as {spec.dtype}; leave the key out"
            )
        return _load_gguf(source, spec, task, on_meta=on_meta)
    cls = getattr(transformers, task.auto_class)
    placed: dict[str, Any] = {"device_map": "meta"} if on_meta else {}
    if quantization is not None and not on_meta:  # without weights there is nothing to quantise
        placed["quantization_config"] = quantization
    try:
        model, report = cls.from_pretrained(
            source.path,
            dtype=getattr(torch, spec.dtype),
            output_loading_info=True,
            **task.model_config(),
            **_attention(spec),
            **source.options,
            **placed,
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise MeloraError(
            f"model {source.name}: can't be loaded as {task.auto_class}: {one_line(error)[:300]}"
        ) from None
    missing = model.config.pad_token_id is None and "pad_token_id" in model.config.to_dict()
    if task.needs_pad_in_config and missing:
        raise MeloraError(f"model {source.name}: its config has no pad_token_id, which batches of texts need; set one")
    if quantization is not None and not on_meta:
        prepare_quantized(model)
    return Base(source, model, new_modules(report["missing_keys"]))


def _attention(spec: ModelSpec) -> dict[str, Any]:
    return {} if spec.attn_implementation is None else {"attn_implementation": spec.attn_implementation}


def _load_gguf(source: ModelSource, spec: ModelSpec, task: Task, *, on_meta: bool) -> Base:
    if task.peft_type != "CAUSAL_LM":
        raise MeloraError(f"model {source.name}: is a GGUF file, which task causal-lm takes, not {task.name}")
    try:
        dtype = getattr(torch, spec.dtype)
        options = {**source.options, **_attention(spec)}
        model = load_gguf(task.auto_class, source.path, dtype, options, on_meta=on_meta)
    except (OSError, ValueError, RuntimeError, ImportError, *DAMAGED) as error:
        raise MeloraError(f"model {source.name}: can't be loaded from GGUF: {one_line(error)[:300]}") from None
    return Base(source, model, [])


def new_modules(missing_keys: set[str] | list[str]) -> list[str]:
    """The modules that missing parameters belong to; a head made of several modules is named once, as PEFT names it."""
    found = set()
    for key in missing_keys:
        parts = key.split(".")[:-1]
        heads = [index for index, part in enumerate(parts) if part in _HEADS]
        found.add(".".join(parts[: heads[0] + 1] if heads else parts))
    return sorted(found - {""})


def fingerprint(model: Any, new: list[str]) -> str:
    """A SHA-256 over the names, shapes and 64 evenly spaced values of every tensor that the checkpoint gave.

    Of a quantised model that is what was left alone: embeddings, norms, biases.

    Args:
        model: the base model, before an adapter is in it.
        new: modules whose weights are not the checkpoint's.
    """
    digest = hashlib.sha256()
    quantized = quantized_names(model)
    for name, tensor in sorted(model.state_dict().items()):
        if name in quantized or any(name.startswith(f"{module}.") for module in new):
            continue
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLE)
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(flat[::step][:_SAMPLE].to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()
