"""Base models stored as one GGUF file: read into plain weights, which can be trained on, merged into and saved."""

import contextlib
import io
import struct
from typing import Any

import torch
import transformers

DAMAGED = (struct.error, IndexError, KeyError)  # what reading a damaged file raises, beside OSError and ValueError

# transformers treats what it read as still quantised and refuses to save it, though every weight is a plain tensor.
_MARKS = ("hf_quantizer", "is_quantized", "quantization_method")


def load_gguf(auto_class: str, path: str, dtype: torch.dtype, options: dict[str, Any], *, on_meta: bool) -> Any:
    """The model of a GGUF file, its weights decoded to `dtype`.

    Args:
        auto_class: the class of transformers that loads it.
        path: the file's folder; its name is options["gguf_file"].
        dtype: of the decoded weights.
        options: further arguments of from_pretrained.
        on_meta: shapes only.

    Raises:
        OSError, ValueError: not readable, or of an architecture that transformers can't decode.
    """
    cls = getattr(transformers, auto_class)
    if on_meta:
        config = transformers.AutoConfig.from_pretrained(path, **options)
        with torch.device("meta"):
            return cls.from_config(config, dtype=dtype)
    # Its own progress bar listens to no setting, and ends up in logs; what goes wrong is raised, not printed.
    with contextlib.redirect_stderr(io.StringIO()):
        model = cls.from_pretrained(path, dtype=dtype, **options)
    for name in _MARKS:
        model.__dict__.pop(name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model
