"""LLaMA-Factory v1's own plugin registry, with melora's plugin in it. Run by `make test-trainers`."""

from pathlib import Path

import pytest
import torch
from llamafactory.v1.config.arg_utils import get_plugin_config
from llamafactory.v1.plugins.model_plugins.peft import PeftPlugin
from transformers import LlamaConfig, LlamaForCausalLM

import melora.integrations.llamafactory  # noqa: F401 - registers the plugin
from melora import MeloraError


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_hidden_layers=1, **sizes))


def test_it_builds_trains_saves_resumes_and_merges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = get_plugin_config({"name": "melora", "r": "2", "n": 4, "lora_alpha": "8", "target_modules": "all"})
    assert config is not None
    model = PeftPlugin(config.name)(tiny(), config, True)
    assert "trainable params" in capsys.readouterr().out
    adapter = model.peft_config["default"]
    assert (adapter.n, adapter.r, adapter.lora_alpha, adapter.task_type) == (4, 2, 8, "CAUSAL_LM")
    ids = torch.tensor([[3, 4, 5, 6]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path)

    saved = {**config, "adapter_name_or_path": str(tmp_path)}
    expected = model.eval()(input_ids=ids).logits
    resumed = PeftPlugin("melora")(tiny(), saved, True)
    assert any(p.requires_grad for p in resumed.parameters())
    torch.testing.assert_close(resumed.eval()(input_ids=ids).logits, expected)
    merged = PeftPlugin("melora")(tiny(), saved, False)
    assert type(merged) is LlamaForCausalLM
    torch.testing.assert_close(merged.eval()(input_ids=ids).logits, expected)


def test_unknown_keys_are_named() -> None:
    with pytest.raises(MeloraError, match="peft_config: melora has no use_dora: take it out"):
        PeftPlugin("melora")(tiny(), {"name": "melora", "use_dora": True}, True)
