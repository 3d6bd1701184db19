"""A sentence-embedding model with MELoRA: add_adapter, train, save, load_adapter.

python examples/sentence_transformers_adapter.py
"""

import tempfile

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from melora import MeloraConfig

PAIRS = {"anchor": ["a fine film", "a dull end"], "positive": ["a good movie", "a boring finish"]}
words = ["[PAD]", "[UNK]", *dict.fromkeys(" ".join(PAIRS["anchor"] + PAIRS["positive"]).split())]
tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
tokens.pre_tokenizer = pre_tokenizers.Whitespace()

with tempfile.TemporaryDirectory() as folder:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(f"{folder}/base")
    PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        f"{folder}/base"
    )

    def base_model() -> SentenceTransformer:
        transformer = Transformer(f"{folder}/base")
        return SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")

    model = base_model()
    model.add_adapter(MeloraConfig(r=2, n=8, target_modules=["query", "value"], task_type="FEATURE_EXTRACTION"))
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            f"{folder}/run",
            max_steps=10,
            learning_rate=0.02,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict(PAIRS),
        loss=MultipleNegativesRankingLoss(model),
    )
    trainer.train()
    trained = model.encode(PAIRS["anchor"], convert_to_tensor=True)
    plain = base_model().encode(PAIRS["anchor"], convert_to_tensor=True)
    assert not torch.allclose(trained, plain, atol=1e-3)

    model.save_pretrained(f"{folder}/trained")  # the adapter alone; the base is found by its path or hub id
    loaded = base_model()
    loaded.load_adapter(f"{folder}/trained")
    difference = (loaded.encode(PAIRS["anchor"], convert_to_tensor=True) - trained).abs().max().item()
    print(f"largest difference after loading: {difference:.1e}")
    assert difference < 1e-5
