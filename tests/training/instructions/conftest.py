"""A Llama of 30 thousand parameters with a tokenizer of bytes, made on the spot; used by tests/training/tasks too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from melora.training.data import Split
from melora.training.instructions.rows import Row

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('odd role') }}"
    "{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer(merges: list[tuple[str, str]] | None = None, *, bos: bool = False, **kwargs: Any) -> Any:
    """Every byte a token, and the pairs in `merges`; with bos, texts begin with <s> as Llama's do."""
    merges = merges or []
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    made = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.add_special_tokens(SPECIAL)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "<|im_end|>", "model_max_length": 512, **kwargs}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


@pytest.fixture
def make_tokenizer() -> Callable[..., Any]:
    return byte_tokenizer


@pytest.fixture
def chat_tokenizer() -> Any:
    """As SmolLM2's: ChatML, and the end token for padding."""
    return byte_tokenizer(chat_template=CHATML, pad_token="<|im_end|>")


@pytest.fixture
def llama_tokenizer() -> Any:
    """As Llama-2's: begins texts with <s>, has no padding token and no chat template."""
    return byte_tokenizer(bos=True, eos_token="</s>")


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    tokenizer = byte_tokenizer(chat_template=CHATML, pad_token="<|im_end|>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.parquet (48 rows) and test.parquet (8): question, and an answer that ends as GSM8K's do."""
    folder = tmp_path_factory.mktemp("sums")
    for name, rows in (("train", range(48)), ("test", range(48, 56))):
        table = {
            "question": [f"What is {row} and {row % 7}?" for row in rows],
            "answer": [f"{row}+{row % 7}={row + row % 7}\n#### {row + row % 7}" for row in rows],
        }
        pyarrow.parquet.write_table(pyarrow.table(table), folder / f"{name}.parquet")
    return folder


@pytest.fixture
def instruct_values(tiny_llama_folder: Path, sums: Path, tmp_path: Path) -> dict[str, Any]:
    """A causal-lm recipe that trains in about two seconds, as plain values; its output is tmp_path/run."""
    return {
        "model": {"name_or_path": str(tiny_llama_folder)},
        "task": "causal-lm",
        "data": {
            "path": str(sums),
            "validation": "test",
            "format": "chat",
            "columns": {"instruction": "question", "output": "answer"},
            "max_length": 128,
        },
        "adapter": {"method": "melora", "r": 1, "n": 4, "target_modules": ["q_proj", "v_proj"]},
        "training": {
            "num_train_epochs": 2,
            "learning_rate": 0.02,
            "per_device_train_batch_size": 8,
            "use_cpu": True,
        },
        "seed": 0,
        "output": str(tmp_path / "run"),
    }


@pytest.fixture
def rows_of() -> Callable[..., Split]:
    """A validation split of rows: rows_of(("instruction", "input", "output"), ...), or of whole Rows."""

    def make(*rows: tuple[str, str, str] | Row) -> Split:
        made = [row if isinstance(row, Row) else Row(*row) for row in rows]
        return Split("validation", Path("rows.jsonl"), [()] * len(made), made)

    return make
