"""The fixtures of tests/training/instructions."""

import runpy
from pathlib import Path

_SHARED = runpy.run_path(str(Path(__file__).parents[1] / "instructions" / "conftest.py"))
tiny_llama_folder, sums, instruct_values = (_SHARED[name] for name in ("tiny_llama_folder", "sums", "instruct_values"))
chat_tokenizer, llama_tokenizer = _SHARED["chat_tokenizer"], _SHARED["llama_tokenizer"]
