"""The questions that `melora bench` can answer, one file each."""

from collections.abc import Callable

from ..group import Group
from ..options import Options
from . import compiled, decode, layer, memory, model, multi, scaling

# A suite checks the options that it alone uses and returns its groups; nothing is allocated before one is measured.
SUITES: dict[str, Callable[[Options], list[Group]]] = {
    "layer": layer.groups,
    "compile": compiled.groups,
    "model": model.groups,
    "decode": decode.groups,
    "multi": multi.groups,
    "memory": memory.groups,
    "scaling": scaling.groups,
}
