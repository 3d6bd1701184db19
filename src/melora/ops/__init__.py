"""One operation, several back ends.

- `block_lora(x, A, B, scaling, *, weight, bias, dropout)`: base and adapter in one function, right on every device.
- `add_block_lora(out, x, ...)`: the adapter added to the output of a base that computes by itself.
- `grouped_block_lora(x, A, B, scaling, index)`: each row through an adapter of its own, without a base;
  `routed_block_lora`: the same for rows in any order and number.
- `block_lora_reference`: the oracle that all are tested against.

The first two run by batched products, or by Triton kernels where `use_backend` or MELORA_BACKEND asks for them.
In graphs (torch.compile, torch.export) the first two are operators of torch.library: `registered`.
"""

from .backend import add_block_lora, block_lora, use_backend
from .grouped import grouped_block_lora, routed_block_lora
from .reference import block_lora_reference

__all__ = [
    "add_block_lora",
    "block_lora",
    "block_lora_reference",
    "grouped_block_lora",
    "routed_block_lora",
    "use_backend",
]
