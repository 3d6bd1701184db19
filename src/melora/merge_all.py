"""Merging a whole model: every layer, or none."""

import copy
from collections.abc import Callable

from peft.tuners.tuners_utils import BaseTunerLayer, onload_layer
from peft.utils.quantization_utils import HqqBackend
from torch import nn

from .errors import MeloraError
from .merging import MergingLayer


def merge_all(model: nn.Module, adapter_names: list[str] | None, safe_merge: bool) -> None:
    """Merge every adapted layer of `model`; where one fails, all that were merged before it are put back, bit for bit.

    Subtracting the update again would leave rounding errors, so what a merge changes is kept until the last layer is
    merged: the minis' blocks, one n-th of the adapted weights; and of quantised layers, which are written anew, all.

    Args:
        model: the model that holds the adapted layers.
        adapter_names: which adapters, by default the active ones; those merged already are passed over.
        safe_merge: refuse results that are not finite.

    Raises:
        MeloraError: a layer can't be merged; the message names it. Whatever else a layer raises passes as it is.
    """
    undo: list[Callable[[], None]] = []
    try:
        for name, layer in model.named_modules():
            if isinstance(layer, BaseTunerLayer):
                _merge(name, layer, adapter_names, safe_merge, undo)
    except BaseException:
        for restore in reversed(undo):
            restore()
        raise


def _merge(
    name: str, layer: BaseTunerLayer, adapter_names: list[str] | None, safe_merge: bool, undo: list[Callable[[], None]]
) -> None:
    with onload_layer(layer):
        undo.append(_restorer(layer, adapter_names))
        try:
            layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        except MeloraError as error:
            raise MeloraError(f"{name}: {error}") from None


def _restorer(layer: BaseTunerLayer, adapter_names: list[str] | None) -> Callable[[], None]:
    """What puts `layer`, base weight and list of merged adapters, back into its present state."""
    merged = list(layer.merged_adapters)
    if not isinstance(layer, MergingLayer):  # PEFT's own, for trained tokens: unmerging those copies the old rows back

        def unmerge() -> None:
            if layer.merged_adapters != merged:
                layer.unmerge()

        return unmerge

    names = layer.active_adapters if adapter_names is None else adapter_names
    todo = [name for name in names if name in layer.n and name not in merged]
    drift = layer.merge_drift
    if layer.quantization_backend is not None:
        # HQQ's back end makes a new layer and leaves the old one alone (which can't be copied anyway, hqq 0.2.8).
        untouched = not todo or isinstance(layer.quantization_backend, HqqBackend)
        base = layer.base_layer if untouched else copy.deepcopy(layer.base_layer)

        def restore_base() -> None:
            layer.base_layer, layer.merged_adapters, layer.merge_drift = base, merged, drift

        return restore_base

    weight = layer.get_base_weight()
    # One for each part that is changed: a diagonal of n blocks, or with mixing the whole weight.
    parts = {(layer.n[name], layer.mixing[name] == "none", layer.permute[name] == "none"): name for name in todo}
    saved = {name: layer.changed_part(weight, name).clone() for name in parts.values()}

    def restore_blocks() -> None:
        with onload_layer(layer):
            weight = layer.get_base_weight()
            for name, blocks in saved.items():
                layer.changed_part(weight, name).copy_(blocks)
        layer.merged_adapters = merged

    return restore_blocks
