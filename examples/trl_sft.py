"""TRL's SFTTrainer with MELoRA: peft_config takes a MeloraConfig as it takes a LoraConfig.

python examples/trl_sft.py
"""

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from melora import MeloraConfig, load_adapter

TEXTS = ["a fine film with a fine end", "a dull film with a dull end"]
words = ["<pad>", "</s>", "<unk>", *dict.fromkeys(" ".join(TEXTS).split())]
tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
tokens.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
tokenizer.model_input_names = ["input_ids", "attention_mask"]


def base_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(words), pad_token_id=0, eos_token_id=1, bos_token_id=1, **sizes))


with tempfile.TemporaryDirectory() as folder:
    trainer = SFTTrainer(
        base_model(),
        args=SFTConfig(
            folder,
            max_steps=30,
            learning_rate=0.05,
            per_device_train_batch_size=2,
            use_cpu=True,
            report_to=[],
            bf16=False,
            gradient_checkpointing=True,
            logging_steps=10,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        processing_class=tokenizer,
        peft_config=MeloraConfig(r=2, n=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print("losses", losses)
    assert losses[-1] < losses[0]
    trainer.save_model(f"{folder}/adapter")

    loaded = load_adapter(base_model(), f"{folder}/adapter").eval()
    batch = tokenizer(TEXTS, return_tensors="pt")
    assert torch.allclose(loaded(**batch).logits, trainer.model.eval()(**batch).logits, atol=1e-5)
