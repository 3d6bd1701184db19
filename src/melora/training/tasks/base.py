"""What a task is: everything that differs between kinds of training data, and nothing else.

A new kind (say causal-lm) is one subclass with a name, registered in __init__.py; the rest of the package only calls
what is defined here.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from ..data import Split
from ..recipe import DataSpec


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
    """

    name: ClassVar[str]
    peft_type: ClassVar[str]
    auto_class: ClassVar[str]
    metric_names: ClassVar[tuple[str, ...]]
    primary: ClassVar[str]
    greater_is_better: ClassVar[bool] = True
    loss_unit: ClassVar[str]

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
    def encode(self, split: Split, tokenizer: Any, spec: DataSpec) -> "tuple[list[dict[str, Any]], int]":
        """(examples for the collator, how many rows max_length cut).

        Raises:
            MeloraError: a label that the training labels don't allow, with its row.
        """

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

    @abstractmethod
    def predictions(self, logits: np.ndarray) -> dict[str, list[Any]]:
        """Columns to write for the user, in the data's own units and names, one value a row."""

    @abstractmethod
    def usage_lines(self) -> list[str]:
        """Python that turns `logits` into a prediction, for the model card."""
