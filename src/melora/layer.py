"""MeloraLayer: what every adapted layer holds, whatever its base: factors, scaling, state."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from accelerate.utils import align_module_device
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from peft.utils.integrations import gather_params_ctx
from peft.utils.quantization_utils import QuantizationBackend
from torch import nn

from .config import MeloraConfig
from .errors import MeloraError
from .factors import Core, MiniFactors, wide
from .initial import gradient_of, has_start, joined, start_factors
from .parts import PartsLayer
from .permutation import Permutation
from .shapes import block_grid, check_exchange, check_shape, diagonal_of


class MeloraLayer(PartsLayer, BaseTunerLayer):
    """The adapters of one base layer: dW = scaling * blockdiag(B_1 A_1, ..., B_n A_n).

    A is (n, r, d_in / n), B is (n, d_out / n, r): r * (d_in + d_out) numbers, whatever n is. That is the linear layer;
    a layer type that differs overrides `check_base`, `factor_shapes`, `delta_blocks` and `grid_of`.

    With mixing, block (i, j) of dW is B_i diag(C[:, i, j]) A_j, C of (r, n, n) a third factor ("learned"), or
    sum_p B_i[:, j q + p] A_j[i q + p] with q = r / n ("shuffle").
    """

    adapter_layer_names: tuple[str, ...] = ("melora_A", "melora_B")  # A's name first
    permutes = False  # whether a layer type takes `permute`
    other_param_names = ("r", "n", "lora_alpha", "scaling", "use_rslora", "mixing", "permute", "melora_dropout")

    def __init__(self, base_layer: nn.Module, quantization_backend: QuantizationBackend | None = None) -> None:
        self.base_layer = base_layer
        self.quantization_backend = quantization_backend
        self.r: dict[str, int] = {}
        self.n: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.use_rslora: dict[str, bool] = {}
        self.mixing, self.permute = {}, {}
        self.melora_dropout = nn.ModuleDict()
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ModuleDict())
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        self.in_features, self.out_features = self.sizes()

    @classmethod
    def sizes_of(cls, base: nn.Module) -> tuple[int, int]:
        """(d_in, d_out) of a base layer."""
        return cast(tuple[int, int], _get_in_out_features(base))

    @classmethod
    def check_base(cls, module_name: str, base: nn.Module, n: int, r: int) -> None:
        """Check that n minis of rank r fit `base`, before anything is allocated.

        Raises:
            MeloraError: they do not; the message names the module, the sizes and what would do.
        """
        check_shape(module_name, *cls.sizes_of(base), n, r)

    @classmethod
    def check_options(cls, module_name: str, base: nn.Module, n: int, r: int, config: MeloraConfig) -> None:
        """Check that ranks can be mixed and channels permuted in `base` as `config` says.

        Raises:
            MeloraError: they can't.
        """
        check_exchange(module_name, n, r, config.mixing)
        if config.permute != "none" and not cls.permutes:
            raise MeloraError(
                f"{module_name}: permute={config.permute!r} is for linear layers, this is a {type(base).__name__}: "
                "name it in exclude_modules, or use permute='none'"
            )

    @classmethod
    def block_sizes(cls, module_name: str, base: nn.Module, n: int) -> tuple[int, int]:
        """Rows and columns of the part of a base weight that one mini changes, as a matrix.

        Raises:
            MeloraError: it is no matrix of the base's numbers.
        """
        d_in, d_out = cls.sizes_of(base)
        return d_out // n, d_in // n

    def sizes(self) -> tuple[int, int]:
        """(d_in, d_out) of what is adapted here."""
        return self.sizes_of(self.get_base_layer())

    def check(self, module_name: str, n: int, r: int) -> None:
        """`check_base` on this layer's base."""
        self.check_base(module_name, self.get_base_layer(), n, r)

    def factor_shapes(self, n: int, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of A and B."""
        return (n, r, self.in_features // n), (n, self.out_features // n, r)

    def update_layer(
        self, adapter_name: str, r: int, n: int, lora_alpha: float, config: MeloraConfig, module_name: str
    ) -> None:
        """Add an adapter to this layer.

        Raises:
            MeloraError: n or r does not fit the weight.
        """
        self.check(module_name, n, r)
        self.check_options(module_name, self.get_base_layer(), n, r, config)
        self.r[adapter_name], self.n[adapter_name] = r, n
        self.mixing[adapter_name], self.permute[adapter_name] = config.mixing, config.permute
        self.lora_alpha[adapter_name], self.use_rslora[adapter_name] = lora_alpha, config.use_rslora
        self.set_scale(adapter_name, 1.0)
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout > 0.0 else nn.Identity()
        self.melora_dropout[adapter_name] = dropout
        for name, shape in zip(self.adapter_layer_names[:2], self.factor_shapes(n, r), strict=True):
            getattr(self, name)[adapter_name] = MiniFactors(*shape, has_start=has_start(config.init_weights))
        if config.mixing == "learned":
            self._add_part("melora_C", adapter_name, Core(*self.core_shape(n, r)))
        if config.permute == "correlation":
            self._add_part("melora_P", adapter_name, Permutation(self.in_features, self.out_features))
        if has_start(config.init_weights):
            self.reset_parameters(adapter_name, True)
            self.set_start(adapter_name, None if config.awaits_tensors else str(config.init_weights))
        else:
            self.reset_parameters(adapter_name, config.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def factors(self, adapter: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(A, B) of an adapter: (n, r, d_in / n) and (n, d_out / n, r).

        The trained parameters, or where these are measured from a start (initial.py) both joined, with 2r for r.
        """
        # Not by attribute and ModuleDict's []: nn.Module's __getattr__ shows in the time of one decoded token.
        modules = cast(Any, self)._modules
        name_A, name_B, *_ = self.adapter_layer_names
        A = modules[name_A]._modules[adapter]._parameters
        B = modules[name_B]._modules[adapter]._parameters
        if A.get("start") is None:
            return A["weight"], B["weight"]
        return joined(A["weight"], B["weight"], A["start"], B["start"])

    def mini_factors(self, adapter: str) -> tuple[MiniFactors, MiniFactors]:
        """The modules that hold A and B of an adapter."""
        A, B = (cast(MiniFactors, getattr(self, name)[adapter]) for name in self.adapter_layer_names[:2])
        return A, B

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """PEFT's, which would let the starts be trained too."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self._freeze_starts()

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """PEFT's, which would let the starts be trained too."""
        super().set_requires_grad(adapter_names, requires_grad=requires_grad)
        self._freeze_starts()

    def _freeze_starts(self) -> None:
        for name in self.adapter_layer_names[:2]:
            for factor in getattr(self, name).values():
                if factor.has_start:
                    factor.start.requires_grad_(False)

    def update_rank(self, adapter: str) -> int:
        """The highest rank that a block of the update can have: r, or 2r where A and B have a start."""
        return self.r[adapter] * (2 if self.mini_factors(adapter)[0].has_start else 1)

    @torch.no_grad()
    def set_start(self, adapter_name: str, init_weights: str | None) -> None:
        """Take A and B, and what they are measured from, from the base weight or its gradient; dW is 0 then.

        Where neither has values yet (on the meta device: they come with sharding, or it is a dry run), and for an
        adapter whose tensors are about to be loaded (init_weights=None), only dW is set to 0.
        """
        factors = self.mini_factors(adapter_name)
        A, B = (factor.weight for factor in factors)
        if init_weights is not None and not A.is_meta:
            base = self.get_base_layer()
            with align_module_device(base), gather_params_ctx(list(base.parameters())):
                source = gradient_of(base) if init_weights == "lora_ga" else self.get_base_weight()
                if source is not None and not source.is_meta:
                    weight = source if init_weights != "lora_ga" else self.in_base_layout(source)
                    blocks = self.start_blocks(weight, adapter_name)
                    matrices = wide(blocks.reshape(*B.shape[:-1], -1))
                    starts = start_factors(init_weights, matrices, self.r[adapter_name], self.scaling[adapter_name])
                    for parameter, start in zip((A, B), starts, strict=True):
                        parameter.copy_(start.reshape(parameter.shape))
        for factor in factors:
            factor.start.copy_(factor.weight)

    @torch.no_grad()
    def reset_parameters(self, adapter_name: str, init_weights: bool | str) -> None:
        """Initialise A and B as the reference does, or as MeloraConfig.init_weights asks."""
        A, B = (factor.weight for factor in self.mini_factors(adapter_name))
        if init_weights == "gaussian":
            nn.init.normal_(A, std=1.0 / self.r[adapter_name])
        else:
            # Kaiming-uniform with a = sqrt(5) over a mini's own fan-in, as the reference: sqrt(n / d_in).
            bound = 1.0 / math.sqrt(math.prod(A.shape[2:]))
            nn.init.uniform_(A, -bound, bound)
        if init_weights is False:
            bound = 1.0 / math.sqrt(B.shape[-1])
            nn.init.uniform_(B, -bound, bound)
        else:
            nn.init.zeros_(B)
        self._reset_core(adapter_name, init_weights)

    def _reset_core(self, adapter_name: str, init_weights: bool | str) -> None:
        """C = I, with which the adapter is plain MELoRA; with init_weights=False random as B is."""
        core = self.core(adapter_name)
        if core is not None:
            core.copy_(torch.eye(core.shape[-1], dtype=core.dtype).expand_as(core))
            if init_weights is False:
                core.add_(torch.randn_like(core))

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set an adapter's scaling to `scale` times the initial one; an adapter that is not here is ignored."""
        if adapter in self.r:
            r = self.r[adapter]
            self.scaling[adapter] = scale * self.lora_alpha[adapter] / (math.sqrt(r) if self.use_rslora[adapter] else r)

    def scale_layer(self, scale: float) -> None:
        """Multiply the scaling of the active adapters by `scale`."""
        for adapter in self.active_adapters:
            if adapter in self.scaling:
                self.scaling[adapter] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the scaling of the active adapters by `scale`; None sets the initial one again."""
        for adapter in self.active_adapters:
            if scale is None:
                self.set_scale(adapter, 1.0)
            elif adapter in self.scaling:
                self.scaling[adapter] /= scale

    def delta_blocks(self, adapter: str) -> torch.Tensor:
        """What the adapter adds to `changed_part` of the weight, in fp32 where the factors are 16 bits wide.

        Returns:
            scaling * B_i A_i for every mini, (n, d_out / n, d_in / n); with mixing every block, (n, n, d_out / n, ...).
        """
        A, B = map(wide, self.factors(adapter))
        if self.mixing[adapter] != "none":
            A, B = self._mixed(adapter, A, B)
        return self.product(A, B) * self.scaling[adapter]

    def product(self, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        """B A without scaling, for whatever leading dimensions the factors share."""
        return torch.matmul(B, A)

    def grid_of(self, weight: torch.Tensor, n: int) -> torch.Tensor:
        """The n x n blocks of a weight in the base's own layout, as a view (n, n, ...)."""
        return block_grid(weight, n)

    def blocks_of(self, weight: torch.Tensor, n: int) -> torch.Tensor:
        """The part of a base weight that n minis change without mixing: a view (n, ...).

        Args:
            weight: in the base weight's own layout.
        """
        return diagonal_of(self.grid_of(weight, n))

    def changed_part(self, weight: torch.Tensor, adapter: str) -> torch.Tensor:
        """The part of a base weight that an adapter changes: a view, in the order of `delta_blocks`."""
        part = self.blocks_of if self.mixing[adapter] == "none" else self.grid_of
        return part(weight, self.n[adapter])

    def start_blocks(self, weight: torch.Tensor, adapter: str) -> torch.Tensor:
        """The block of a base weight, or of its gradient in the same layout, that each mini starts from: (n, ...)."""
        return self.changed_part(weight, adapter)

    def updated_weight(self, active: list[str]) -> torch.Tensor:
        """W + dW of the active adapters, as a new tensor through which the factors get their gradients."""
        weight = self.get_base_weight().clone()
        for name in active:
            blocks = self.changed_part(weight, name)
            blocks += self.delta_blocks(name).reshape(blocks.shape).to(weight.dtype)
        return weight

    def in_base_layout(self, weight: torch.Tensor) -> torch.Tensor:
        """A (d_out, d_in) matrix in the base weight's own layout."""
        return weight

    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the base weight, unpacked where the base is quantised."""
        return self.out_features, self.in_features

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """The dense update in the base weight's own layout: (d_out, d_in), or (d_in, d_out) for Conv1D.

        In the factors' dtype; differentiable.
        """
        B = self.factors(adapter)[1]
        delta = torch.zeros(self.weight_shape(), dtype=B.dtype, device=B.device)
        blocks = self.changed_part(delta, adapter)
        blocks.copy_(self.delta_blocks(adapter).reshape(blocks.shape))
        return delta

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True
