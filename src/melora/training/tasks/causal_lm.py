"""Teach a causal language model to answer instructions, on TRL's SFTTrainer."""

import math
from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import MeloraError
from ..data import Split
from ..instructions import rows as rows  # registers how the rows of InstructionData are read
from ..instructions.spec import IGNORED, InstructionData
from ..recipe import DataSpec, Recipe
from .base import Encoded, Task

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from ..trainer import AdapterTrainer

_ELSEWHERE = {
    "max_length": "use data.max_length",
    "truncation_mode": "rows are cut at their end, and counted",
    "completion_only_loss": "use data.loss",
    "assistant_only_loss": "use data.loss",
    "dataset_text_field": "use data.columns",
    "dataset_kwargs": "melora prepares the data itself",
    "dataset_num_proc": "melora prepares the data itself",
    "eval_packing": "held-out rows are never packed, so that the loss of each is its own",
    "eos_token": "the tokenizer's own end token is taken",
    "pad_token": "melora chooses one where the tokenizer has none",
    "chat_template_path": "the tokenizer's own chat template is taken",
    "model_init_kwargs": "use the recipe's section model",
    "padding_free": "use training.packing",
}


class CausalLM(Task):
    """Next tokens; the score is the held-out loss in nats per learned token."""

    name = "causal-lm"
    peft_type = "CAUSAL_LM"
    auto_class = "AutoModelForCausalLM"
    metric_names = ("loss", "perplexity")
    primary = "loss"
    greater_is_better = False
    loss_unit = "nats per token"

    @property
    def shown(self) -> str:
        return "perplexity"

    @classmethod
    def data_section(cls) -> type[DataSpec]:
        return InstructionData

    @classmethod
    def arguments_class(cls) -> "type[TrainingArguments]":
        from trl.trainer.sft_config import SFTConfig

        fields: type[TrainingArguments] = SFTConfig
        return fields

    @classmethod
    def arguments_elsewhere(cls) -> Mapping[str, str]:
        return _ELSEWHERE

    def argument_defaults(self) -> dict[str, Any]:
        return {
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
            # SFTConfig turns both on by itself; here a recipe asks for them, as it does in every other task.
            "activation_checkpointing": False,
            "gradient_checkpointing": None,
            "bf16": False,
            "max_length": None,
            "eval_packing": False,
            "dataset_kwargs": {"skip_prepare_dataset": True},
        }

    def trainer_class(self, *, training: bool) -> "type[AdapterTrainer]":
        from ..instructions.sft import SftAdapterTrainer, TokenLossTrainer

        return SftAdapterTrainer if training else TokenLossTrainer

    @classmethod
    def fit(cls, train: Split) -> "CausalLM":
        return cls()

    def state(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "CausalLM":
        return cls()

    def model_config(self) -> dict[str, Any]:
        return {}

    def encode(self, split: Split, tokenizer: Any, spec: DataSpec) -> Encoded:
        from ..instructions.encoding import encode_rows, give_pad_token
        from ..instructions.formats import check_format
        from ..instructions.generation import check_answers

        section = _instructions(spec)
        check_format(section, tokenizer)
        give_pad_token(tokenizer)
        if split.name == "validation":
            check_answers(split, section)
        return encode_rows(split, tokenizer, section)

    def arrange(self, examples: list[dict[str, Any]], recipe: Recipe) -> list[dict[str, Any]]:
        from ..instructions.packing import pack

        strategy = recipe.training.get("packing_strategy", "bfd")
        if not recipe.training.get("packing"):
            return examples
        if strategy != "bfd":
            raise MeloraError(f"training.packing_strategy: {strategy} cuts rows in two; only bfd keeps them whole")
        return pack(examples, recipe.data.max_length)

    def final_scores(self, model: Any, tokenizer: Any, split: Split, spec: DataSpec, batch: int) -> dict[str, Any]:
        from ..instructions.generation import exact_match

        section = _instructions(spec)
        return {"answers": exact_match(model, tokenizer, split, section, batch)} if section.answers else {}

    def collator(self, tokenizer: Any) -> Any:
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        return DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)

    def loss_of(self, model: Any, inputs: dict[str, Any]) -> Any:
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model.get_base_model())
        return -model(**inputs, use_cache=False, fused_lm_head=True).log_probs.sum()

    def metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """From sums of losses (rows, 1) and counts of tokens (rows,), as the trainers here predict them."""
        loss = float(logits.astype(np.float64).sum() / labels.sum())
        # Beyond this exp() has no float; a model that far off is as good as none.
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def predictions(self, logits: np.ndarray) -> dict[str, list[Any]]:
        return {"nats": logits.reshape(-1).astype(np.float64).tolist()}

    def inputs(self, spec: DataSpec) -> dict[str, Any]:
        from ..instructions.formats import wording

        section = _instructions(spec)
        return {
            "format": section.format,
            "prompt": wording(section),
            "system": section.system,
            "columns": section.columns,
            "loss": section.loss,
            "max_length": section.max_length,
        }

    def describe_rows(self, spec: DataSpec) -> str:
        section = _instructions(spec)
        renamed = "".join(f"; {role}: `{column}`" for role, column in section.columns.items())
        return f"format: {section.format}; loss on {section.loss}{renamed}"

    def preview(self, examples: list[dict[str, Any]], tokenizer: Any) -> list[str]:
        lengths = [len(example["input_ids"]) for example in examples]
        learned = sum(label != IGNORED for example in examples for label in example["labels"])
        first = examples[0]
        lines = [
            f"tokens   {sum(lengths):,}, of which {learned:,} are learned; mean {sum(lengths) / len(lengths):.0f}, "
            f"longest {max(lengths)} an example",
            "example  the first one, by what is learned (+) and what is only read (-):",
        ]
        pairs = zip(first["input_ids"], first["labels"], strict=True)
        for said, group in groupby(pairs, key=lambda pair: pair[1] != IGNORED):
            lines.append(f"  {'+' if said else '-'} {tokenizer.decode([token for token, _ in group])!r}")
        return lines

    def usage_lines(self, spec: DataSpec) -> list[str]:
        from ..instructions.formats import wording

        section = _instructions(spec)
        special = ""
        if section.format == "chat":
            system = [{"role": "system", "content": section.system}] if section.system else []
            asked = [*system, {"role": "user", "content": "What is 12 times 3?"}]
            start = [
                f"messages = {asked!r}",
                "prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)",
            ]
            special = ", add_special_tokens=False"  # the template has written them
        elif section.format == "text":
            start = ['prompt = "Once upon a time"']
        else:
            fields = "instruction='What is 12 times 3?', input='', system=''"
            start = [f"prompt = {wording(section)!r}.format({fields})"]
        return [
            *start,
            f'inputs = tokenizer(prompt, return_tensors="pt"{special})',
            f"output = model.generate(**inputs, do_sample=False, max_new_tokens={section.answer_tokens})",
            'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]


def _instructions(spec: DataSpec) -> InstructionData:
    if not isinstance(spec, InstructionData):
        raise TypeError(f"causal-lm needs the data section that parse_recipe makes for it, got {type(spec).__name__}")
    return spec
