"""What a task is: everything that differs between kinds of training data, and nothing else.

A new kind (say causal-lm) is one subclass with a name, registered in __init__.py; the rest of the package only calls
what is defined here.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from transformers import TrainingArguments

from ..data import Split
from ..recipe import DataSpec, Recipe

if TYPE_CHECKING:
    from ..trainer import AdapterTrainer


@dataclass(frozen=True)
class Encoded:
    """The rows of a split as token ids.

    Attributes:
        examples: what the collator takes, one a row.
        cut: how many rows max_length cut.
        dropped: how many rows were left out because nothing to learn was left of them.
    """

    examples: list[dict[str, Any]]
    cut: int
    dropped: int = 0


class Task(ABC):
    """One kind of training. An instance holds what was learned from the training labels (`state`).

    Attributes:
        name: what a recipe's `task` says.
        peft_type: the task_type of the adapter's config, one of PEFT's TaskType names.
        auto_class: the class of transformers that loads the base model with this task's head.
        metric_names: every score that `metrics` gives.
        primary: the one of them that chooses the best epoch and heads every report.
        greater_is_better: whether more of it is better.
        loss_unit: what the loss is measured in, for plots.
        needs_pad_in_config: whether the model itself looks for the padding token's id in its config.
    """

    name: ClassVar[str]
    peft_type: ClassVar[str]
    auto_class: ClassVar[str]
    metric_names: ClassVar[tuple[str, ...]]
    primary: ClassVar[str]
    greater_is_better: ClassVar[bool] = True
    loss_unit: ClassVar[str]
    needs_pad_in_config: ClassVar[bool] = False

    @property
    def shown(self) -> str:
        """The score that is drawn and printed beside the loss."""
        return self.primary

    @classmethod
    def data_section(cls) -> type[DataSpec]:
        """The type of the recipe's `data`; `data.read_rows` knows how to take a row's text and label by it."""
        return DataSpec

    @classmethod
    def arguments_class(cls) -> type[TrainingArguments]:
        """The type of the recipe's `training`."""
        fields: type[TrainingArguments] = TrainingArguments
        return fields

    @classmethod
    def arguments_elsewhere(cls) -> Mapping[str, str]:
        """Fields of `arguments_class` that a recipe must not set, and what to do instead."""
        return {}

    def argument_defaults(self) -> dict[str, Any]:
        """Defaults for `training` that differ from melora's own."""
        return {}

    def trainer_class(self, *, training: bool) -> "type[AdapterTrainer]":
        """The class of the trainer; without training it only scores."""
        from ..trainer import AdapterTrainer

        return AdapterTrainer

    @classmethod
    @abstractmethod
    def fit(cls, train: Split) -> "Task":
        """Learn classes, or mean and deviation, from the training labels.

        Raises:
            MeloraError: a label that this task can't take, with its row.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What `from_state` needs, as plain JSON values; stored beside the adapter."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Any]) -> "Task":
        """The task that `state` describes."""

    @abstractmethod
    def model_config(self) -> dict[str, Any]:
        """Fields of the base model's config that this task sets, such as num_labels."""

    @abstractmethod
    def encode(self, split: Split, tokenizer: Any, spec: DataSpec) -> Encoded:
        """The split's rows as token ids, cut at max_length.

        Raises:
            MeloraError: a label that the training labels don't allow, with its row.
        """

    def arrange(self, examples: list[dict[str, Any]], recipe: Recipe) -> list[dict[str, Any]]:
        """The training examples as the trainer takes them: the same, unless several go into one."""
        return examples

    @abstractmethod
    def collator(self, tokenizer: Any) -> Any:
        """What makes a batch of examples, padded to the longest of the batch."""

    @abstractmethod
    def metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The scores that `metric_names` lists, all finite.

        Args:
            logits: (rows, outputs) as the model gave them.
            labels: (rows,) as `encode` made them.
        """

    def loss_of(self, model: Any, inputs: dict[str, Any]) -> Any:
        """A batch's loss as its trainer makes it, up to a factor; what a dry run traces for its memory."""
        return model(**inputs).loss

    @abstractmethod
    def predictions(self, logits: np.ndarray) -> dict[str, list[Any]]:
        """Columns to write for the user, in the data's own units and names, one value a row."""

    def final_scores(self, model: Any, tokenizer: Any, split: Split, spec: DataSpec, batch: int) -> dict[str, Any]:
        """Scores that are too dear for every evaluation: taken once, of the adapter that is kept; {} if there are none.

        Args:
            model: base model with its adapter.
            tokenizer: its tokenizer.
            split: the held-out rows.
            spec: the recipe's data section.
            batch: rows at a time.
        """
        return {}

    def inputs(self, spec: DataSpec) -> dict[str, Any]:
        """How a row becomes the model's input, as plain JSON values; stored beside the adapter."""
        return {"text": spec.text_columns, "max_length": spec.max_length}

    def describe_rows(self, spec: DataSpec) -> str:
        """Which columns were trained on and how, in Markdown, for the model card."""
        return f"text: {', '.join(f'`{name}`' for name in spec.text_columns)}; label: `{spec.label}`"

    def preview(self, examples: list[dict[str, Any]], tokenizer: Any) -> list[str]:
        """Lines that show what is trained on, for a dry run; none where the text itself says it all."""
        return []

    @abstractmethod
    def usage_lines(self, spec: DataSpec) -> list[str]:
        """Python that uses `model` and `tokenizer` on a row's input, for the model card."""
