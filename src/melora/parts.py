"""What an adapter may have beside A and B: a core that mixes ranks across blocks, an order of the channels."""

from typing import cast

import torch
from torch import nn

from .errors import MeloraError
from .factors import Core
from .permutation import Permutation, check_orders


class PartsLayer:
    """The part of MeloraLayer that holds them, each in a ModuleDict that is there only where an adapter needs it.

    Attributes:
        mixing, permute: of each adapter, as MeloraConfig has them.
    """

    adapter_layer_names: tuple[str, ...]
    in_features: int
    out_features: int
    mixing: dict[str, str]
    permute: dict[str, str]

    def _add_part(self, name: str, adapter_name: str, module: nn.Module) -> None:
        self.make_room(name)
        getattr(self, name)[adapter_name] = module

    def make_room(self, name: str) -> None:
        """Have the ModuleDict of a part, so that adding one to it leaves the layer's own children as they are."""
        if not hasattr(self, name):  # a name of this layer only, so that no other layer holds an empty one
            setattr(self, name, nn.ModuleDict())
            self.adapter_layer_names = (*self.adapter_layer_names, name)

    def core_shape(self, n: int, r: int) -> tuple[int, ...]:
        """The shape of C."""
        return r, n, n

    def core(self, adapter: str) -> torch.Tensor | None:
        """C of an adapter with mixing="learned", (r, n, n)."""
        if self.mixing[adapter] != "learned":
            return None
        modules = cast(nn.Module, self)._modules
        return cast(Core, cast(nn.ModuleDict, modules["melora_C"])._modules[adapter]).weight

    def order(self, adapter: str) -> torch.Tensor | None:
        """The calibrated order of an adapter with permute="correlation", as Permutation.weight has it.

        Raises:
            MeloraError: it is not calibrated, or the order that was loaded is none.
        """
        if self.permute[adapter] != "correlation":
            return None
        permutation = self._permutation(adapter)
        if not permutation.is_known:
            problem = permutation.problem()
            if problem is not None:
                raise MeloraError(f"adapter {adapter!r}: {problem}")
        return permutation.weight

    def is_ordered(self, adapter: str) -> bool:
        """Whether an adapter with permute="correlation" is calibrated."""
        return self._permutation(adapter).is_calibrated()

    def set_order(self, adapter: str, order: torch.Tensor) -> None:
        """Give an adapter with permute="correlation" its order, as Permutation.weight has it.

        Raises:
            MeloraError: it does not name every channel once.
        """
        check_orders(f"adapter {adapter!r}", order, self.in_features, self.out_features)
        self._permutation(adapter).set(order)

    def _permutation(self, adapter: str) -> Permutation:
        parts = cast(nn.ModuleDict, cast(nn.Module, self)._modules["melora_P"])
        return cast(Permutation, parts[adapter])

    def _mixed(self, adapter: str, A: torch.Tensor, B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors whose `product` is every block: A (1 or n, n, ..., r', d_in / n), B (n, n, ..., d_out / n, r')."""
        core = self.core(adapter)
        n, experts = A.shape[0], B.dim() - 3
        if core is not None:
            return A.unsqueeze(0), B.unsqueeze(1) * core.to(B.dtype).movedim((-2, -1), (0, 1)).unsqueeze(-2)
        # The group of ranks in A that goes to block i, and the one in B that comes from block j, as dimensions.
        A = A.unflatten(1 + experts, (n, -1)).movedim(1 + experts, 0)
        return A, B.unflatten(-1, (n, -1)).movedim(-2, 1)
