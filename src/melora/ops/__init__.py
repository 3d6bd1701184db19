"""One operation, several back ends, one signature.

`block_lora(x, A, B, scaling, *, weight, bias, dropout)` is the batched back end: the only one so far, right on every
device. `block_lora_reference` is the oracle that it is tested against.
"""

from .batched import block_lora
from .reference import block_lora_reference

__all__ = ["block_lora", "block_lora_reference"]
