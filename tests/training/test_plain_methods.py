from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from melora import MeloraError
from melora.training.adapter import adapter_and_head, adapter_config, attach

METHODS = ("head", "bias", "full")
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}


def bert() -> Any:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=20, max_position_embeddings=8, **SHAPE))


def llama(*, tied: bool = False) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, tie_word_embeddings=tied, **SHAPE))


def with_method(model: Any, task_type: str = "SEQ_CLS", **adapter: Any) -> PeftModel:
    return attach(model, adapter_config(adapter, task_type, ["classifier"] if task_type == "SEQ_CLS" else []))


def trained_names(model: PeftModel) -> set[str]:
    return {name.removeprefix("base_model.model.") for name in adapter_and_head(model)[0]}


def test_each_method_trains_what_it_says() -> None:
    base = bert()
    everything = {name for name, _ in base.named_parameters() if not name.startswith("classifier")}
    expected = {"head": set(), "bias": {name for name in everything if name.endswith("bias")}, "full": everything}
    for method in METHODS:
        model = with_method(bert(), method=method)
        assert trained_names(model) == expected[method]
        assert sum(p.numel() for p in adapter_and_head(model)[1].values()) == 2 * 16 + 2


def test_biases_of_the_targets_alone() -> None:
    model = with_method(
        bert(), method="bias", target_modules=["query", "LayerNorm"], exclude_modules=["output.LayerNorm"]
    )
    start = "bert.encoder.layer.0.attention.self"
    assert trained_names(model) == {f"{start}.query.bias", "bert.embeddings.LayerNorm.bias"}
    linear = with_method(bert(), method="bias", target_modules="all-linear")
    assert f"{start}.key.bias" in trained_names(linear)
    assert not any("LayerNorm" in name for name in trained_names(linear))


def test_a_weight_that_two_modules_share_is_trained_and_saved_once(tmp_path: Path) -> None:
    model = with_method(llama(tied=True), "CAUSAL_LM", method="full")
    assert "model.embed_tokens.weight" in trained_names(model)
    assert "lm_head.weight" not in trained_names(model)
    model.save_pretrained(tmp_path / "adapter")
    assert set(load_file(tmp_path / "adapter" / "adapter_model.safetensors")) == {
        f"base_model.model.{name}" for name in trained_names(model)
    }
    with torch.no_grad():
        model.get_input_embeddings().weight += 1
    merged = model.merge_and_unload()
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


def test_new_modules_whose_names_end_alike_are_no_part_of_the_base() -> None:
    model = bert()
    model.pre_classifier = torch.nn.Linear(16, 16)  # PEFT takes it for a head, too
    whole = with_method(model, method="full")
    assert not any("classifier" in name for name in trained_names(whole))
    assert sum("pre_classifier" in name for name in adapter_and_head(whole)[1]) == 2
    assert whole.state_dict()  # and all of it can be saved
    assert whole.base_model._get_adapter_state_dict(whole, None, "default", whole.state_dict(), [])


@pytest.mark.parametrize(
    ("model", "task_type", "adapter", "told"),
    [
        (llama, "CAUSAL_LM", {"method": "head"}, "adapter.method head: the model has no new module, such as a classif"),
        (
            llama,
            "CAUSAL_LM",
            {"method": "bias"},
            "adapter.method bias: the model has no bias to train; choose other ada",
        ),
        (bert, "SEQ_CLS", {"method": "bias", "target_modules": ["word_embeddings"]}, "['word_embeddings'] has no bias"),
        (bert, "SEQ_CLS", {"method": "bias", "target_modules": ["querry"]}, "target_modules=['querry']"),
        (bert, "SEQ_CLS", {"method": "full", "target_modules": ["query"]}, "adapter: unknown key 'target_modules'"),
        (bert, "SEQ_CLS", {"method": "head", "r": 8}, "adapter: unknown key 'r'"),
        (
            lambda: bert().bfloat16(),
            "SEQ_CLS",
            {"method": "full"},
            "weight in torch.bfloat16, where small steps are lost",
        ),
    ],
)
def test_what_can_not_be_trained_is_named(model: Any, task_type: str, adapter: dict[str, Any], told: str) -> None:
    with pytest.raises(MeloraError) as caught:
        with_method(model(), task_type, **adapter)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["bias", "full"])
def test_what_was_trained_in_place_can_not_be_taken_out(method: str) -> None:
    model = with_method(bert(), method=method)
    with pytest.raises(MeloraError, match=f"adapter.method {method}: trains the base model's own weights, so there is"):
        model.add_adapter("other", adapter_config({"method": method}, "SEQ_CLS"))
    for refused in (model.unload, model.disable_adapter().__enter__):
        with pytest.raises(MeloraError, match=r"can't (unload|disable) what was trained: bert"):
            refused()


def test_a_head_alone_can_be_taken_out() -> None:
    model = with_method(bert(), method="head").eval()
    ids = torch.tensor([[1, 2, 3]])
    before = model(input_ids=ids).logits
    with torch.no_grad():
        for parameter in adapter_and_head(model)[1].values():
            parameter += 1
    with model.disable_adapter():
        assert torch.equal(model(input_ids=ids).logits, before)
    assert not torch.equal(model(input_ids=ids).logits, before)
