import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertTokenizerFast

from demo import stock_peft

ROOT = Path(__file__).parents[2]
TEXTS = ["a fine film", "a dull film", "dull"]
MEAN, DEVIATION = 0.25, 2.0


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A folder with a tiny base model, a LoRA of it as `melora export --to lora` lays it out, and three texts."""
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "dull", "film"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    config = BertConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=1
    )
    base = BertForSequenceClassification(config)
    base.save_pretrained(tmp_path / "base")
    lora = LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS", init_lora_weights=False)
    model = get_peft_model(base, lora)
    model.save_pretrained(str(tmp_path / "lora"))
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path / "lora")
    task = {"task": "regression", "label_mean": MEAN, "label_deviation": DEVIATION, "text": ["text"], "max_length": 64}
    (tmp_path / "lora" / "melora_task.json").write_text(json.dumps(task))
    pd.DataFrame({"text": TEXTS}).to_parquet(tmp_path / "texts.parquet")
    return tmp_path


def test_a_fresh_process_predicts_in_the_labels_unit(exported: Path) -> None:
    output = exported / "predictions.json"
    command = [sys.executable, "demo/stock_peft.py", "--base", str(exported / "base"), "--output", str(output)]
    command += ["--adapter", str(exported / "lora"), "--data", str(exported / "texts.parquet")]
    subprocess.run(command, check=True, cwd=ROOT)

    base = BertForSequenceClassification.from_pretrained(exported / "base")
    model = PeftModel.from_pretrained(base, exported / "lora").eval()
    tokenizer = AutoTokenizer.from_pretrained(exported / "lora")
    with torch.no_grad():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits.item() for text in TEXTS]
    expected = [logit * DEVIATION + MEAN for logit in logits]
    assert len(set(expected)) == 3
    # Batches of padded rows against single rows: equal up to fp32's rounding.
    assert json.loads(output.read_text()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["melora", "melora.config", "melora_cli"])
def test_the_fresh_process_cannot_import_melora(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="is hidden in this process"):
        stock_peft._WithoutMelora().find_spec(name, None)


def test_other_packages_are_left_to_other_finders() -> None:
    assert stock_peft._WithoutMelora().find_spec("peft", None) is None
    assert stock_peft._WithoutMelora().find_spec("melorama", None) is None
