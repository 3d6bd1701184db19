"""transformers' own adapter methods and pipelines with MELoRA: no PeftModel around the model.

python examples/transformers_adapters.py        (transformers 5.23; see docs/neighbours.md for 5.24)
"""

import tempfile

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, pipeline

from melora import MeloraConfig

TEXT = "a fine film with a fine end"
words = ["<pad>", "</s>", "<unk>", *dict.fromkeys(TEXT.split())]
tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
tokens.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
tokenizer.model_input_names = ["input_ids", "attention_mask"]

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
base = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), pad_token_id=0, eos_token_id=1, bos_token_id=1, **sizes))
batch = tokenizer(TEXT, return_tensors="pt")

with tempfile.TemporaryDirectory() as folder:
    base.save_pretrained(f"{folder}/base")

    # Add, train, save: save_pretrained writes the adapter alone.
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/base")
    model.add_adapter(MeloraConfig(r=2, n=8, target_modules=["q_proj", "v_proj", "o_proj"]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
    model.save_pretrained(f"{folder}/adapter")

    # Load into another copy of the base, twice, and switch.
    fresh = AutoModelForCausalLM.from_pretrained(f"{folder}/base").eval()
    plain = fresh(**batch).logits
    fresh.load_adapter(f"{folder}/adapter", adapter_name="film")
    fresh.load_adapter(f"{folder}/adapter", adapter_name="copy")
    fresh.set_adapter("film")
    print("active:", fresh.active_adapters())
    assert torch.allclose(fresh(**batch).logits, model.eval()(**batch).logits, atol=1e-5)
    fresh.disable_adapters()
    assert torch.equal(fresh(**batch).logits, plain)
    fresh.enable_adapters()
    fresh.delete_adapter("copy")

    # Pipelines take the adapted model, and adapter folders: the base is found by the adapter's config.
    generate = pipeline("text-generation", model=fresh, tokenizer=tokenizer)
    print(generate("a fine", max_new_tokens=5, do_sample=False)[0]["generated_text"])
    print(f"loss {loss.item():.3f}")
