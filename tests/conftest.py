"""Small models made on the spot, shared by the tests of the library core."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers import LlamaForCausalLM as Llama
from transformers.pytorch_utils import Conv1D


class MLP(nn.Module):
    """24 -> 48 -> 48 -> 6, the middle layer a Conv1D (weights stored transposed)."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(24, 48, bias=bias)
        self.middle = Conv1D(48, 48)
        self.head = nn.Linear(48, 6, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(torch.relu(self.middle(torch.relu(self.first(x)))))
        return y


@pytest.fixture
def make_mlp() -> Callable[..., MLP]:
    """Makes the same MLP every time, whatever was drawn before."""

    def make(seed: int = 0, **kwargs: Any) -> MLP:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return MLP(**kwargs)

    return make


@pytest.fixture
def tiny_bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            num_labels=3,
        )
    ).eval()


@pytest.fixture
def tiny_llama() -> Llama:
    torch.manual_seed(0)
    return Llama(
        LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    ).eval()


@pytest.fixture
def tiny_gpt2() -> GPT2LMHeadModel:
    """Its projections are Conv1D."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)
    return GPT2LMHeadModel(config).eval()


def small_bart(**changes: Any) -> BartForConditionalGeneration:
    """Two layers each way, with the numbers that were drawn last; `changes` go to its config."""
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=50,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=64,
            **changes,
        )
    )


def small_t5(**changes: Any) -> T5ForConditionalGeneration:
    """As small_bart."""
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=50,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
            **changes,
        )
    )
