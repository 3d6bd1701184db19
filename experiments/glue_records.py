"""What is kept of a finished run: its recipe, scores and environment in one small JSON file."""

from pathlib import Path
from typing import Any

from melora.training.folder import ENVIRONMENT, RECIPE, RESULTS, read_json, write_json
from melora.training.schema import read_yaml


def record_of(run: Path) -> dict[str, Any]:
    """The record of a finished run's folder.

    Raises:
        MeloraError: a file of the run is missing or damaged.
    """
    return {
        "recipe": read_yaml(run / RECIPE),
        "results": read_json(run / RESULTS),
        "environment": read_json(run / ENVIRONMENT),
    }


def write_record(file: Path, record: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, record)


def read_record(file: Path) -> dict[str, Any]:
    """A record that `write_record` wrote.

    Raises:
        MeloraError: it is damaged.
    """
    return read_json(file)
