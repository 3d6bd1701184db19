"""Predict with an exported adapter as someone who has never heard of melora: transformers and stock PEFT alone.

A script of its own for a fresh process. Any import of melora in it fails, and it ends with an error should one have
worked all the same.
"""

import argparse
import importlib.abc
import json
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


class _WithoutMelora(importlib.abc.MetaPathFinder):
    """Stands before all other finders and finds no melora, installed or not."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in ("melora", "melora_cli"):
            raise ModuleNotFoundError(f"{fullname} is hidden in this process", name=fullname)
        return None


def predict(base: str, adapter: Path, data: Path, batch: int = 64) -> list[float]:
    """The adapter's predictions for every row of a Parquet file, in the label's own unit.

    Args:
        base: folder of the base model.
        adapter: folder of the LoRA adapter, with the tokenizer and melora_task.json, which says how the labels were
            scaled and which columns hold the text.
        data: the rows.
        batch: rows at a time.
    """
    import pandas as pd
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging

    # They report that the base has no classifier: it is in the adapter's file.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    task = json.loads((adapter / "melora_task.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model = PeftModel.from_pretrained(model, adapter).eval()
    columns = [pd.read_parquet(data)[name].tolist() for name in task["text"]]
    predictions: list[float] = []
    for start in range(0, len(columns[0]), batch):
        texts = [column[start : start + batch] for column in columns]
        options = {"truncation": True, "max_length": task["max_length"], "padding": True, "return_tensors": "pt"}
        with torch.inference_mode():
            logits = model(**tokenizer(*texts, **options)).logits.double().reshape(-1)
        predictions += (logits * task["label_deviation"] + task["label_mean"]).tolist()
    return predictions


def main() -> None:
    """Write the predictions to a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, help="folder of the base model")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the exported LoRA")
    parser.add_argument("--data", type=Path, required=True, help="Parquet file to predict")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    sys.meta_path.insert(0, _WithoutMelora())
    warnings.simplefilter("ignore", FutureWarning)  # PEFT's use of what transformers 6 will rename
    predictions = predict(args.base, args.adapter, args.data)
    if "melora" in sys.modules:
        sys.exit("error: melora was imported in the process that was to do without it")
    args.output.write_text(json.dumps(predictions))


if __name__ == "__main__":
    main()
