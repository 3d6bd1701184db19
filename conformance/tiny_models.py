"""Tiny models under the hub names that PEFT's tests ask for: random weights, made on the spot, in a hub cache's layout.

With HF_HUB_CACHE at that folder and HF_HUB_OFFLINE=1, from_pretrained finds them by name and nothing asks the hub. They
have the architecture that the name says, and sizes of our choice: what a test draws from the hub's own weights (a
tokenizer's text, say) is not there.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig

# What the model types call the same things.
_NAMES: dict[str, dict[str, Any]] = {
    "OPT": {"ffn": "ffn_dim", "extra": {"word_embed_proj_dim": 32, "max_position_embeddings": 128}},
    "GPT2": {"hidden": "n_embd", "layers": "n_layer", "heads": "n_head"},
    "GPTJ": {"hidden": "n_embd", "layers": "n_layer", "heads": "n_head", "extra": {"rotary_dim": 4}},
    "Llama": {"ffn": "intermediate_size", "extra": {"num_key_value_heads": 2}},
    "Mistral": {"ffn": "intermediate_size", "extra": {"num_key_value_heads": 2}},
    "Qwen2": {"ffn": "intermediate_size", "extra": {"num_key_value_heads": 2}},
    "Gemma3Text": {"ffn": "intermediate_size", "extra": {"num_key_value_heads": 2, "head_dim": 8}},
    "T5": {"hidden": "d_model", "layers": "num_layers", "heads": "num_heads", "ffn": "d_ff", "extra": {"d_kv": 8}},
    "Bart": {
        "hidden": "d_model",
        "layers": "encoder_layers",
        "heads": "encoder_attention_heads",
        "ffn": "encoder_ffn_dim",
        "extra": {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64},
    },
    "Bert": {"ffn": "intermediate_size"},
    "Roberta": {"ffn": "intermediate_size", "extra": {"max_position_embeddings": 130}},
    "Deberta": {"ffn": "intermediate_size", "extra": {"pos_att_type": ["c2p", "p2c"], "relative_attention": True}},
    "DebertaV2": {"ffn": "intermediate_size", "extra": {"pos_att_type": ["c2p", "p2c"], "relative_attention": True}},
}

# Hub name -> (model class, config class without "Config").
MODELS = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("OPTForCausalLM", "OPT"),
    "peft-internal-testing/opt-125m": ("OPTForCausalLM", "OPT"),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", "GPT2"),
    "hf-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", "GPT2"),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("GPTJForCausalLM", "GPTJ"),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", "Llama"),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("MistralForCausalLM", "Mistral"),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2ForCausalLM", "Qwen2"),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("Gemma3ForCausalLM", "Gemma3Text"),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": ("T5ForConditionalGeneration", "T5"),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": ("BartForConditionalGeneration", "Bart"),
    "bert-base-uncased": ("BertForSequenceClassification", "Bert"),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": ("BertForSequenceClassification", "Bert"),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": (
        "RobertaForSequenceClassification",
        "Roberta",
    ),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": ("LlamaForSequenceClassification", "Llama"),
    "peft-internal-testing/tiny-random-BertModel": ("BertModel", "Bert"),
    "peft-internal-testing/tiny-random-RobertaModel": ("RobertaModel", "Roberta"),
    "peft-internal-testing/tiny-random-DebertaModel": ("DebertaModel", "Deberta"),
    "peft-internal-testing/tiny-random-DebertaV2Model": ("DebertaV2Model", "DebertaV2"),
}

# So large that the models' outputs differ visibly when an adapter changes them; the tests compare with 1e-4.
_INITIALIZER_RANGE = 0.2


def make_cache(folder: Path) -> Path:
    """Make every model of MODELS that `folder`, a hub cache, does not hold yet. Returns `folder`."""
    transformers.utils.logging.disable_progress_bar()
    for name in MODELS:
        repository = folder / f"models--{name.replace('/', '--')}"
        commit = hashlib.sha1(name.encode()).hexdigest()
        reference = repository / "refs" / "main"
        if not reference.is_file():
            make_model(name).save_pretrained(repository / "snapshots" / commit)
            reference.parent.mkdir(parents=True)
            reference.write_text(commit)  # last: a model that is half written is made again
    make_adapter(folder)
    return folder


def make_adapter(folder: Path) -> None:
    """The repository of a LoRA adapter's config that test_config.py reads, in its two revisions."""
    repository = folder / "models--peft-internal-testing--tiny-opt-lora-revision"
    commit = "0" * 40
    config = LoraConfig(r=8, lora_alpha=32, lora_dropout=0.05, target_modules=["q_proj", "v_proj"])
    config.save_pretrained(str(repository / "snapshots" / commit))
    for revision in ("main", "test"):
        reference = repository / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)


def make_model(name: str) -> Any:
    """A fresh tiny model of that hub name: two layers of width 32, the same weights each time."""
    model_class, kind = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**_sizes(kind))
    torch.manual_seed(0)
    return getattr(transformers, model_class)(config)


def _sizes(kind: str) -> dict[str, Any]:
    names = _NAMES[kind]
    sizes = {
        "vocab_size": 1000,
        names.get("hidden", "hidden_size"): 32,
        names.get("layers", "num_hidden_layers"): 2,
        names.get("heads", "num_attention_heads"): 4,
        "initializer_range": _INITIALIZER_RANGE,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if "ffn" in names:
        sizes[names["ffn"]] = 64
    extra: dict[str, Any] = names.get("extra", {})
    return sizes | extra
