"""The recipe's training.report_to: which trackers there are, and whether they are installed."""

from collections.abc import Sequence

from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..errors import MeloraError
from .schema import nearest

_PACKAGES = {"azure_ml": "azureml-core", "comet_ml": "comet-ml", "flyte": "flytekit"}
_EVERY = ("all", "none")


def check_trackers(report_to: str | Sequence[str] | None) -> None:
    """Look for the trackers that a recipe names.

    Raises:
        MeloraError: one is unknown, or its package is not installed.
    """
    names = [report_to] if isinstance(report_to, str) else list(report_to or [])
    installed = get_available_reporting_integrations()
    for name in names:
        if name in _EVERY or name in installed:
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise MeloraError(
                f"training.report_to: unknown tracker {name!r}; there is {', '.join(sorted(INTEGRATION_TO_CALLBACK))} "
                f"({nearest(name, sorted(INTEGRATION_TO_CALLBACK))})"
            )
        raise MeloraError(
            f"training.report_to: {name} is not installed; run `pip install {_PACKAGES.get(name, name)}`, or set "
            "training.report_to=none"
        )
