"""Suite "scaling": how the cost grows with n at a fixed r, with the layers, and with the tokens."""

from dataclasses import replace

from ..group import Group
from ..options import Options
from ..row import Facts
from ..shapes import possible
from .layer import layer_group

N = (1, 2, 4, 8, 16, 32, 64)
LAYERS = (1, 2, 4, 8)
TOKENS = (1 / 4, 1 / 2, 1, 2, 4)


def groups(options: Options) -> list[Group]:
    """All n in one group, at the first r; layers and tokens one group each, at the first n and r."""
    found = []
    r = options.pairs[0][1]
    for d_in, d_out in options.widths():
        pairs = possible([(n, r) for n in N], d_in, d_out)
        for dtype in options.dtypes:
            facts = Facts("scaling", "n", d_in, d_out, options.tokens[0], dtype=dtype, dropout=options.dropouts[0])
            found.append(layer_group(facts, options, pairs))
            for factor in TOKENS:
                tokens = max(1, int(factor * facts.tokens))
                found.append(layer_group(replace(facts, case="tokens", tokens=tokens), options, options.pairs[:1]))
            if d_in == d_out:
                for layers in LAYERS:
                    found.append(layer_group(replace(facts, case="layers", layers=layers), options, options.pairs[:1]))
    return found
