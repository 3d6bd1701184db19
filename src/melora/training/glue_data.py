"""The recipe's data section of the tasks of GLUE."""

from dataclasses import dataclass
from typing import ClassVar

from .dataspec import DataSpec


@dataclass
class GlueData(DataSpec):
    """The data of a task of GLUE: by default from the hub's nyu-mll/glue.

    Where the recipe says nothing else, `subset` is the task's own and `text` its columns. A folder in `path` holds a
    folder for each task, with a file for each split: glue/rte/train.parquet and glue/rte/validation.parquet.

    Attributes:
        columns: the texts' columns.
        folder: the task's name in GLUE.
    """

    path: str | None = "nyu-mll/glue"
    columns: ClassVar[tuple[str, ...]]
    folder: ClassVar[str]

    def __post_init__(self) -> None:
        if self.path is not None:
            self.subset = self.subset or self.folder
            if self.folder == "mnli":
                self.validation = self.validation or "validation_matched"
        if self.text == ["text"]:
            self.text = list(self.columns)
        super().__post_init__()
