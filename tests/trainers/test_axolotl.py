"""axolotl's own plugin manager and config schema, with melora's plugin in it. Run by `make test-trainers`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from axolotl.integrations.base import BasePlugin, PluginManager
from axolotl.utils.dict import DictDefault
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from melora import MeloraConfig, MeloraError
from melora.integrations.axolotl import MeloraArgs

PLUGIN = "melora.integrations.axolotl.MeloraPlugin"
YAML = {
    "adapter": "melora",
    "melora_n": 4,
    "lora_r": 2,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "lora_target_linear": True,
}


@pytest.fixture
def manager() -> PluginManager:
    manager = PluginManager.get_instance()
    manager.plugins.clear()
    manager.register(PLUGIN)
    return manager


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_hidden_layers=1, **sizes))


def test_axolotl_finds_the_adapter(manager: PluginManager) -> None:
    assert isinstance(manager.plugins[PLUGIN], BasePlugin)
    assert manager.supports_adapter("melora")
    assert not manager.adapter_supports_relora("melora")
    assert manager.get_input_args() == ["melora.integrations.axolotl.MeloraArgs"]
    assert MeloraArgs(melora_n=4).melora_n == 4


def test_it_builds_trains_saves_and_loads(manager: PluginManager, tmp_path: Path) -> None:
    model, config = manager.load_adapter(tiny(), DictDefault(YAML))
    assert isinstance(config, MeloraConfig)
    assert (config.n, config.r, config.lora_alpha, config.lora_dropout, config.task_type) == (4, 2, 8, 0.1, "CAUSAL_LM")
    ids = torch.tensor([[3, 4, 5, 6]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path)
    loaded, _ = manager.load_adapter(tiny(), DictDefault({**YAML, "lora_model_dir": str(tmp_path)}), inference=True)
    assert isinstance(loaded, PeftModel)
    assert not any(p.requires_grad for p in loaded.parameters())
    torch.testing.assert_close(loaded.eval()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def test_config_only_and_other_adapters(manager: PluginManager) -> None:
    model, config = manager.load_adapter(tiny(), DictDefault(YAML), config_only=True)
    assert model is None
    assert config.target_modules == "all-linear"
    assert manager.load_adapter(tiny(), DictDefault({"adapter": "lora"})) is None


@pytest.mark.parametrize("key", ["peft_use_dora", "peft_layer_replication", "peft_init_lora_weights"])
def test_what_melora_has_not(manager: PluginManager, key: str) -> None:
    value: Any = True
    with pytest.raises(MeloraError, match=f"adapter: melora has no {key}"):
        manager.load_adapter(tiny(), DictDefault({**YAML, key: value}))
