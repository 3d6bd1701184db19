"""Suite "memory": what a layer's forward keeps, the most that a step holds, and adapter files of a 7B model.

No call of a layer is timed here: memory is exact, and the same on every run. The files are in disk.py.
"""

import itertools
from dataclasses import replace
from functools import partial

import torch

from ..disk import disk_groups
from ..group import Built, Group
from ..memory import peak_bytes
from ..options import Options
from ..row import Facts
from ..shapes import DTYPES
from .layer import contestants, layer_group, saved_of, step_of


def groups(options: Options) -> list[Group]:
    """One group for each width, number of tokens, dtype and dropout; then saving, loading and exporting."""
    found = []
    for (d_in, d_out), tokens, dtype, dropout in itertools.product(
        options.widths(), options.tokens, options.dtypes, options.dropouts
    ):
        facts = Facts("memory", "memory of a layer", d_in, d_out, tokens, dtype=dtype, dropout=dropout)
        group = layer_group(facts, options)
        found.append(replace(group, build=partial(_build, group, options.device), timed=False))
    return found + disk_groups(options)


def _build(group: Group, device: str) -> list[Built]:
    facts = group.facts
    dtype = DTYPES[facts.dtype]
    x = torch.randn(facts.tokens, facts.d_in, dtype=dtype, device=device, requires_grad=True)
    grad = torch.randn(facts.tokens, facts.d_out, dtype=dtype, device=device)
    built = []
    for one in contestants(facts, group.peers, device):
        step = step_of(one, x, grad)
        step()  # the first call may set things up that stay
        built.append(Built(one.parameters, step, saved_of(one, x), partial(peak_bytes, step, device)))
    return built
