"""PAPER.md's counts, on the real shapes: models built on the meta device, so that 7B cost nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaForSequenceClassification

from melora import MeloraConfig


def roberta_base() -> Any:
    return RobertaForSequenceClassification(
        RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, hidden_size=768)
    )


def llama_2_7b() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
    )


ROBERTA, LLAMA = ["query", "value"], ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("build", "config", "parameters"),
    [
        (roberta_base, LoraConfig(r=8, target_modules=ROBERTA), 294_912),
        *((roberta_base, MeloraConfig(r=8, n=n, target_modules=ROBERTA), 294_912) for n in (1, 2, 8, 96)),
        (roberta_base, MeloraConfig(r=1, n=8, target_modules=ROBERTA), 36_864),
        (llama_2_7b, LoraConfig(r=64, target_modules=LLAMA), 33_554_432),
        (llama_2_7b, MeloraConfig(r=1, n=64, target_modules=LLAMA), 524_288),
    ],
)
def test_parameter_counts(build: Callable[[], Any], config: PeftConfig, parameters: int) -> None:
    with torch.device("meta"):
        model = get_peft_model(build(), config)
    assert model.get_nb_trainable_parameters()[0] == parameters
