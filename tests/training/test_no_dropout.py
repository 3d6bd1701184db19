from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import get_peft_model
from torch import nn

from melora import MeloraConfig
from melora.training.base import load_base
from melora.training.no_dropout import disable_dropout
from melora.training.recipe import ModelSpec
from melora.training.source import find_model
from melora.training.tasks.classification import Classification

IDS = torch.arange(5, 29).reshape(2, 12)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 64}


def bert(attention: str) -> nn.Module:
    config = transformers.BertConfig(**SMALL)
    return transformers.AutoModel.from_config(config, attn_implementation=attention)


def llama(attention: str) -> nn.Module:
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, attention_dropout=0.3)
    return transformers.AutoModel.from_config(config, attn_implementation=attention)


def gpt2(attention: str) -> nn.Module:
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64)
    return transformers.AutoModel.from_config(config, attn_implementation=attention)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("build", [bert, llama, gpt2])
def test_a_model_in_training_computes_as_in_evaluation(build: Any, attention: str) -> None:
    model = build(attention)
    wanted = model.eval()(input_ids=IDS).last_hidden_state
    model.train()
    assert not torch.equal(model(input_ids=IDS).last_hidden_state, wanted)
    assert disable_dropout(model) > 0
    torch.testing.assert_close(model(input_ids=IDS).last_hidden_state, wanted)
    assert disable_dropout(model) == 0


def test_the_adapters_own_dropout_stays() -> None:
    model = llama("eager")
    disable_dropout(model)
    adapted = get_peft_model(
        model, MeloraConfig(n=2, r=1, target_modules=["q_proj"], lora_dropout=0.5, init_weights=False)
    )
    adapted.train()
    first, second = (adapted(input_ids=IDS).last_hidden_state for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("disable", [False, True])
def test_the_recipe_decides(tiny_model: Path, disable: bool) -> None:
    spec = ModelSpec(str(tiny_model), disable_dropout=disable)
    model = load_base(find_model(spec), spec, Classification(["a", "b"])).model
    found = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert found
    assert all((p == 0) == disable for p in found)
