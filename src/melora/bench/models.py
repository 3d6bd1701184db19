"""Whole models by their configuration, with random weights: what a step takes does not depend on their values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..shapes import check_shape


@dataclass(frozen=True)
class Shape:
    """A model and the batch it is trained with.

    Attributes:
        width: hidden size, for which parameters are made equal.
        step, per: a training step is `step` sequences of `per` tokens.
        targets: {name: modules}, as an adapter's target_modules.
        causal: whether it generates text.
        numbers: of its weights, roughly.
        vocabulary: number of tokens.
    """

    width: int
    step: int
    per: int
    targets: dict[str, list[str]]
    causal: bool
    numbers: int
    vocabulary: int
    make: Callable[[], nn.Module]


def _bert(**sizes: Any) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes)
    model: nn.Module = BertForSequenceClassification(config)
    return model


def _llama(**sizes: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    model: nn.Module = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **sizes))
    return model


_BERT = {"query+value": ["query", "value"], "all-linear": ["query", "key", "value", "dense"]}
_LLAMA = {
    "query+value": ["q_proj", "v_proj"],
    "all-linear": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}

MODELS = {
    "minilm": Shape(
        384, 32, 64, _BERT, False, 22_700_000, 30522,
        lambda: _bert(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
    ),
    "smollm2": Shape(
        576, 4, 256, _LLAMA, True, 134_500_000, 49152,
        lambda: _llama(
            hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536,
            vocab_size=49152, rms_norm_eps=1e-5, rope_theta=100000.0,
        ),
    ),
    "tiny": Shape(
        64, 2, 16, _LLAMA, True, 100_000, 256,
        lambda: _llama(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, intermediate_size=128,
            vocab_size=256,
        ),
    ),
}  # fmt: skip


def random_model(shape: Shape, dtype: torch.dtype, device: str) -> nn.Module:
    """The frozen model, in training mode; without dropout of its own, which would only blur the comparison."""
    with torch.device(device):
        model = shape.make()
    return model.to(dtype).train().requires_grad_(False)


def check_model(name: str, targets: list[str], pairs: list[tuple[int, int]]) -> None:
    """Raise MeloraError unless every target of the model can have every (n, r)."""
    with torch.device("meta"):
        model = MODELS[name].make()
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and path.rpartition(".")[2] in targets:
            for n, r in pairs:
                check_shape(f"bench model {name}, {path}", layer.in_features, layer.out_features, n, r)
