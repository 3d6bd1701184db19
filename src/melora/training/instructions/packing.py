"""Several rows in one sequence: no padding, and each row still sees itself alone."""

from typing import Any

from datasets import Dataset
from trl.data_utils import pack_dataset


def pack(examples: list[dict[str, Any]], length: int) -> list[dict[str, Any]]:
    """Sequences of at most `length` tokens, each of whole rows (best fit, longest first), with their `seq_lengths`.

    Positions start anew at each row, from which attention keeps rows apart: transformers' own sdpa, eager, flex and
    flash attention do so in models that build their mask by `create_causal_mask`, Llama, Qwen, Mistral and Gemma among
    them. A row's first token has no label, as without packing.
    """
    packed = pack_dataset(Dataset.from_list(examples), length, "bfd")
    return [dict(row) for row in packed]
