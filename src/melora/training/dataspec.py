"""The recipe's data section: where rows come from, which of them, and which of their columns."""

from dataclasses import dataclass, field

from ..errors import MeloraError
from .schema import positive

LARGEST_SEED = 2**32 - 1  # numpy's limit
LARGEST_LENGTH = 10_000_000
LARGEST_ROWS = 10**12


@dataclass
class DataSpec:
    """The data: two files with the same columns, or two splits of a folder or of a data set on the hub.

    Args:
        train: file to train on (.csv, .tsv, .jsonl or .parquet, the first three also with .gz behind); with `path`, a
            split's name (default train).
        validation: file, or with `path` a split's name (default validation), to score every epoch on and to choose the
            best epoch by.
        path: a folder that holds a file for each split, or the id of a data set on the hub (owner/name).
        subset: a folder within `path`, or a configuration of the hub's data set.
        revision: branch, tag or commit of a data set on the hub.
        text: column, or two columns for pairs of texts.
        label: column of the label: a number for regression, a whole number or a name for classification.
        max_length: longest input in tokens; longer ones are cut, and the number of cut rows is reported.
        holdout: take the validation rows out of the training rows: a share below 1, or a number of rows from 1.
            `validation` is then not read.
        max_train_rows: train on so many rows, drawn by rows_seed; a smaller number gives a part of a larger one's rows.
        max_validation_rows: score on so many rows, drawn by rows_seed.
        rows_seed: draws the rows of the three keys above. It is apart from the recipe's seed, so that runs with other
            seeds see the same rows.
    """

    train: str | None = None
    validation: str | None = None
    path: str | None = None
    subset: str | None = None
    revision: str | None = None
    text: list[str] | str = field(default_factory=lambda: ["text"])
    label: str = "label"
    max_length: int = 256
    holdout: float | None = None
    max_train_rows: int | None = None
    max_validation_rows: int | None = None
    rows_seed: int = 0

    def __post_init__(self) -> None:
        self.text = [self.text] if isinstance(self.text, str) else list(self.text)
        if not 1 <= len(self.text) <= 2 or len(set(self.text)) != len(self.text) or self.label in self.text:
            raise MeloraError(
                f"data.text: must be one column or two different ones, none of them the label {self.label!r}; "
                f"got {self.text}"
            )
        positive("data.max_length", self.max_length, LARGEST_LENGTH)
        self._check_source()
        self._check_rows()

    @property
    def text_columns(self) -> list[str]:
        return list(self.text)

    def _check_source(self) -> None:
        if self.path is not None:
            if not self.path.strip():
                raise MeloraError("data.path: is empty; give a folder or a hub id (owner/name)")
            self.train, self.validation = self.train or "train", self.validation or "validation"
            return
        for key in ("subset", "revision"):
            if getattr(self, key) is not None:
                raise MeloraError(f"data.{key}: belongs to data.path, which is not set; remove it or set data.path")
        if not self.train:
            raise MeloraError("data.train: is missing; give a file, or a folder or hub id in data.path")
        if not self.validation and self.holdout is None:
            raise MeloraError(
                "data.validation: is missing; give a file, or data.holdout to take a part of the training rows"
            )

    def _check_rows(self) -> None:
        for key in ("max_train_rows", "max_validation_rows"):
            if getattr(self, key) is not None:
                positive(f"data.{key}", getattr(self, key), LARGEST_ROWS)
        if self.holdout is not None:
            positive("data.holdout", self.holdout, LARGEST_ROWS)
            if self.holdout > 1 and not float(self.holdout).is_integer():
                raise MeloraError(
                    f"data.holdout: must be a share below 1 or a whole number of rows, got {self.holdout}"
                )
        if not 0 <= self.rows_seed <= LARGEST_SEED:
            raise MeloraError(f"data.rows_seed: must be from 0 to {LARGEST_SEED}, got {self.rows_seed}")
