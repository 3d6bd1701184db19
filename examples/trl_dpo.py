"""TRL's DPOTrainer with MELoRA. The reference model is the base itself: TRL disables the adapter to score with it.

python examples/trl_dpo.py
"""

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from melora import MeloraConfig

PAIRS = {"prompt": ["the film is"] * 2, "chosen": [" fine", " good"], "rejected": [" dull", " bad"]}
words = ["<pad>", "</s>", "<unk>", "the", "film", "is", "fine", "good", "dull", "bad"]
tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
tokens.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
tokenizer.model_input_names = ["input_ids", "attention_mask"]

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
base = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), pad_token_id=0, eos_token_id=1, bos_token_id=1, **sizes))

with tempfile.TemporaryDirectory() as folder:
    trainer = DPOTrainer(
        base,
        args=DPOConfig(
            folder,
            max_steps=20,
            learning_rate=0.02,
            per_device_train_batch_size=2,
            use_cpu=True,
            report_to=[],
            bf16=False,
            logging_steps=5,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict(PAIRS),
        processing_class=tokenizer,
        peft_config=MeloraConfig(r=2, n=8, target_modules=["q_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM"),
    )
    trainer.train()
    margins = [entry["rewards/margins"] for entry in trainer.state.log_history if "rewards/margins" in entry]
    print("reward margins", margins)
    assert margins[-1] > margins[0]
