"""The adapters of nn.Conv1d, nn.Conv2d and nn.Conv3d."""

import math
import warnings
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from .adapted import AdaptedLayer
from .config import MeloraConfig
from .errors import MeloraError
from .ops.mixing import mix
from .shapes import block_grid, check_shape, diagonal_of, divisors

_PRODUCTS: dict[int, Callable[..., torch.Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


class _ConvNd(AdaptedLayer):
    """MELoRA on a convolution: mini i is a LoRA from the i-th slice of the input channels to the i-th of the output's.

    y = base(x) + scaling * conv_B(conv_A(drop(x))); conv_A has the base's kernel, stride, padding and dilation, goes
    from d_in to n * r channels and has n groups; conv_B is 1 x 1, from n * r to d_out channels, with n groups. n=1 is
    peft.tuners.lora.Conv1d, Conv2d and Conv3d (PEFT 0.21; those leave out dilation and padding_mode, which makes sizes
    or borders wrong).

    A is (n, r, d_in / n, *kernel), B is (n, d_out / n, r): r (d_in * prod(kernel) + d_out) parameters, whatever n is.

    A base with g groups is block-diagonal itself. Where g divides n, each mini lies inside one group and all is as
    above. Where n divides g, mini i spans q = g / n groups and is what PEFT's LoRA is on those: A reads the whole
    slice, B has q groups, (n, d_out / n, r / q); this mixes groups, so it can't be merged, and q must divide r.
    """

    @classmethod
    def check_base(cls, module_name: str, base: nn.Module, n: int, r: int) -> None:
        d_in, d_out = cls.sizes_of(base)
        groups = cast(nn.Conv2d, base).groups
        if n % groups and groups % n:
            fitting = [str(k) for k in divisors(groups) if d_in % k == d_out % k == 0]
            raise MeloraError(
                f"{module_name}: n={n} and the convolution's groups={groups} must divide one another; choose "
                f"n={groups}, a multiple of it, or one of {', '.join(fitting)}, in n_pattern for this module alone"
            )
        check_shape(module_name, d_in, d_out, n, r)
        spanned = max(1, groups // n)
        if r % spanned:
            raise MeloraError(
                f"{module_name}: with groups={groups} and n={n} each mini spans {spanned} groups, so r={r} must be "
                f"divisible by {spanned}: choose r={spanned} in rank_pattern, or n={groups} in n_pattern"
            )

    @classmethod
    def block_sizes(cls, module_name: str, base: nn.Module, n: int) -> tuple[int, int]:
        conv = cast(nn.Conv2d, base)
        if conv.groups > n:
            raise MeloraError(
                f"{module_name}: with n={n} a mini spans several groups of the convolution (groups={conv.groups}), and "
                f"no part of its weight is the mini's own; choose n={conv.groups} in n_pattern, or init_weights=True"
            )
        rows, columns = super().block_sizes(module_name, base, n)
        return rows, columns * math.prod(conv.kernel_size)

    @property
    def conv(self) -> nn.Conv2d:
        """The base layer, of whatever dimension."""
        return cast(nn.Conv2d, self.get_base_layer())

    def spanned_groups(self, n: int) -> int:
        """q, how many groups of the base a mini spans: 1 where it lies inside one."""
        return max(1, self.conv.groups // n)

    def factor_shapes(self, n: int, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        kernel = self.conv.weight.shape[2:]
        return (n, r, self.in_features // n, *kernel), (n, self.out_features // n, r // self.spanned_groups(n))

    @classmethod
    def check_options(cls, module_name: str, base: nn.Module, n: int, r: int, config: MeloraConfig) -> None:
        groups = cast(nn.Conv2d, base).groups
        if config.mixing != "none" and groups > 1:
            raise MeloraError(
                f"{module_name}: mixing={config.mixing!r} would mix the groups of a convolution with groups={groups}: "
                "name it in exclude_modules, or use mixing='none'"
            )
        super().check_options(module_name, base, n, r, config)

    def update_layer(
        self, adapter_name: str, r: int, n: int, lora_alpha: float, config: MeloraConfig, module_name: str
    ) -> None:
        super().update_layer(adapter_name, r, n, lora_alpha, config, module_name)
        groups = self.conv.groups
        if self.spanned_groups(n) > 1:
            warnings.warn(
                f"{module_name}: an adapter with n={n} on a convolution with groups={groups} can't be merged; one with "
                f"n={groups} can",
                stacklevel=2,
            )

    def adapter_output(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """x (N, d_in, *space) or (d_in, *space) -> what the base answers for it."""
        A, B = self.factors(name)
        base, n = self.conv, A.shape[0]
        product = _PRODUCTS[base.weight.dim()]
        dtype = self.autocast_dtype(x)
        padding = base.padding
        x = self.dropped(name, x.to(dtype))
        if base.padding_mode != "zeros":
            x, padding = F.pad(x, base._reversed_padding_repeated_twice, mode=base.padding_mode), "valid"
        u = product(x, A.flatten(0, 1).to(dtype), None, base.stride, padding, base.dilation, n)
        if self.mixing[name] != "none":
            u = self._mix(name, u)
        B = B.flatten(0, 1).to(dtype)[(...,) + (None,) * (A.dim() - 3)]
        return product(u, B, groups=n * self.spanned_groups(n)) * self.scaling[name]

    def _mix(self, name: str, u: torch.Tensor) -> torch.Tensor:
        """u (N, n * r, *space) or (n * r, *space), its ranks mixed across blocks."""
        n, core = self.n[name], self.core(name)
        channels = -(self.conv.weight.dim() - 1)
        blocks = u.unflatten(channels, (n, -1)).movedim((channels - 1, channels), (0, -1))
        mixed = mix(blocks.flatten(1, -2), None if core is None else core.to(u.dtype), self.mixing[name] == "shuffle")
        return mixed.reshape(blocks.shape).movedim((0, -1), (channels - 1, channels)).flatten(channels - 1, channels)

    def product(self, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        self._check_groups(A.shape[0])
        kernel = self.conv.weight.dim() - 1  # and the channels before it
        return cast(torch.Tensor, torch.matmul(B, A.flatten(-kernel)).unflatten(-1, A.shape[-kernel:]))

    def blocks_of(self, weight: torch.Tensor, n: int) -> torch.Tensor:
        groups = self.conv.groups
        # The base's own groups are its rows; its columns are one group's channels, which n / g minis share.
        grid = block_grid(weight.unflatten(0, (groups, -1)), n // groups, rows=1, columns=2)
        return diagonal_of(grid).transpose(0, 1)

    def weight_shape(self) -> tuple[int, ...]:
        return tuple(self.conv.weight.shape)

    def check_mergeable(self) -> None:
        super().check_mergeable()
        for name in self.active_adapters:
            if name in self.n:
                self._check_groups(self.n[name])

    def _check_groups(self, n: int) -> None:
        if self.spanned_groups(n) > 1:
            raise MeloraError(
                f"MELoRA with n={n} mixes the groups of a convolution with groups={self.conv.groups}, so no weight of "
                f"it can hold the update: use the adapter unmerged, or train with n={self.conv.groups}"
            )


class Conv1d(_ConvNd):
    __doc__ = _ConvNd.__doc__


class Conv2d(_ConvNd):
    __doc__ = _ConvNd.__doc__


class Conv3d(_ConvNd):
    __doc__ = _ConvNd.__doc__
