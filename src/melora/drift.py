"""What a merge into a quantised base costs: measured layer by layer, and said once for the whole model."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from peft.utils.warning import PeftWarning
from torch import nn

from .errors import MeloraError
from .merging import MergeDrift, MergingLayer


def merge_drift(model: nn.Module) -> dict[str, MergeDrift]:
    """The drift of every quantised layer that is merged now, by the layer's name in `model`."""
    return {
        name: layer.merge_drift for name, layer in _layers(model).items() if layer.merged_adapters and layer.merge_drift
    }


@contextmanager
def reported_drift(model: nn.Module) -> Iterator[None]:
    """While open, the model may be merged; nothing starts where one layer could not be, and drift is said at the end.

    Raises:
        MeloraError: a layer can't be merged (see MergingLayer.check_mergeable); no layer has been touched.

    Warns:
        PeftWarning: quantised layers were merged; with the largest drift, and the layer that has it.
    """
    layers = _layers(model)
    for name, layer in layers.items():
        try:
            layer.check_mergeable()
        except MeloraError as error:
            raise MeloraError(f"{name}: {error}") from None
    before = {name: layer.merge_drift for name, layer in layers.items()}
    yield
    found = {
        name: layer.merge_drift
        for name, layer in layers.items()
        if layer.merge_drift is not None and layer.merge_drift is not before[name]
    }
    if found:
        name, drift = max(found.items(), key=lambda item: item[1].error)
        warnings.warn(
            f"merged into {len(found)} quantised layer(s), whose weights were quantised again: they differ from the "
            f"exact sum by up to {drift.error:.2g} ({name}, where the update is up to {drift.update:.2g}); "
            "unmerging does not take that back. Use the adapter unmerged, or merge into the model loaded without "
            "quantisation, where that is too much",
            PeftWarning,
            stacklevel=3,
        )


def _layers(model: nn.Module) -> dict[str, MergingLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, MergingLayer)}
