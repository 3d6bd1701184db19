import math
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import BertConfig, BertForSequenceClassification

from melora import MeloraConfig, MeloraError
from melora.training.adapter import adapter_and_head, adapter_config, attach


@pytest.fixture
def model() -> BertForSequenceClassification:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(BertConfig(vocab_size=20, **shape))


def test_the_method_chooses_the_config() -> None:
    assert isinstance(adapter_config({"r": 2}, "SEQ_CLS"), MeloraConfig)
    config = adapter_config({"method": "lora", "r": 4, "modules_to_save": ["a"]}, "SEQ_CLS", ["b"])
    assert isinstance(config, LoraConfig)
    assert config.modules_to_save == ["a", "b"]
    assert config.task_type == "SEQ_CLS"


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        ({"method": "melroa"}, "adapter.method: unknown method 'melroa'; did you mean melora"),
        ({"method": 3}, "adapter.method: unknown method 3"),
        ({"lora_alfa": 3}, "adapter: unknown key 'lora_alfa'; did you mean lora_alpha"),
        ({"peft_type": "LORA"}, "adapter.peft_type: is set from the task and the model"),
        ({"n": "eight"}, "adapter.n: must be of type int or 'auto', got 'eight'"),
        ({"n": 0}, "adapter.n: must be a finite number above 0, got 0"),
        ({"r": -1}, "adapter.r: must be a finite number above 0, got -1"),
        ({"n": 10**9}, "adapter: n must be a whole number from 1 to"),
        ({"r": 10**9}, "adapter: r must be a whole number from 1 to"),
        ({"lora_alpha": math.nan}, "adapter.lora_alpha: must be a finite number above 0, got nan"),
        ({"lora_dropout": math.nan}, "adapter.lora_dropout: must be a finite number"),
        ({"method": "lora", "r": 0}, "adapter.r: must be a finite number above 0, got 0"),
        ({"method": "lora", "bias": "some"}, "adapter.bias: must be of type Literal"),
        ({"method": "lora", "layers_to_transform": [1], "target_modules": "a.*"}, "adapter: "),
    ],
)
def test_what_is_wrong_is_named(adapter: dict[str, Any], told: str) -> None:
    with pytest.raises(MeloraError) as caught:
        adapter_config(adapter, "SEQ_CLS")
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["melora", "lora"])
def test_adapter_and_head_are_told_apart(model: BertForSequenceClassification, method: str) -> None:
    config = adapter_config({"method": method, "target_modules": ["query"]}, "SEQ_CLS", ["classifier"])
    peft_model = attach(model, config)
    adapter, head = adapter_and_head(peft_model)
    assert sum(p.numel() for p in head.values()) == 2 * 16 + 2
    assert sum(p.numel() for p in adapter.values()) == config.r * 32
    assert peft_model.peft_config["default"].modules_to_save == ["classifier"]  # and not PEFT's guess "score"


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        ({"n": 3, "target_modules": ["query"]}, "query"),
        ({"target_modules": ["querry"]}, "query"),
        ({"method": "lora", "target_modules": ["querry"]}, "querry"),
        ({"method": "lora", "r": 10**9, "target_modules": ["query"]}, "adapter.r: 1000000000 is above 32"),
    ],
)
def test_an_adapter_that_does_not_fit(model: BertForSequenceClassification, adapter: dict[str, Any], told: str) -> None:
    with pytest.raises(MeloraError) as caught:
        attach(model, adapter_config(adapter, "SEQ_CLS"))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dry_run_allocates_nothing(model: BertForSequenceClassification) -> None:
    peft_model = attach(
        model.to("meta"), adapter_config({"target_modules": ["query"]}, "SEQ_CLS", ["classifier"]), on_meta=True
    )
    assert {parameter.device for parameter in peft_model.parameters()} == {torch.device("meta")}
