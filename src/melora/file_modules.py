"""The adapted modules of an adapter file: which layer each is for, read off the names and shapes of its tensors.

With mixing="learned" a third tensor C (r, n, n), for experts (E, r, n, n), is named melora_C; with
permute="correlation" an order of the channels, (d_in + d_out,), is named melora_P.

layer                  A                           B
linear                 (n, r, d_in / n)            (n, d_out / n, r)
attention              (n, r, d / n)               (n, 3 d / n, r)             and a module NAME.base_layer.out_proj
convolution            (n, r, d_in / n, *kernel)   (n, d_out / n, r / q)       q groups of the base to a mini
embedding              (n, r, V)                   (n, d / n, r)               keys melora_embedding_A and _B
parameter (experts)    (n, E, r, d_in / n)         (n, E, d_out / n, r)        in target_parameters, as plain
                                                                               matrices are, laid out as linear

Where the config's init_weights is one with a start (initial.py), NAME.melora_A.start and NAME.melora_B.start lie beside
them, of the same shapes: dW = scaling * blockdiag(B_i A_i - B0_i A0_i), on the base weight as it was before training.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from .config import MeloraConfig
from .errors import MeloraError
from .initial import START, has_start
from .targets import module_settings

PREFIX = "base_model.model."
OUT_PROJ = ".base_layer.out_proj"

Kind = Literal["linear", "attention", "convolution", "embedding", "parameter"]
Shapes = dict[str, tuple[int, ...]]
_ENDS = {
    "MELORA": ((".melora_A.weight", ".melora_B.weight"), (".melora_embedding_A.weight", ".melora_embedding_B.weight")),
    "LORA": ((".lora_A.weight", ".lora_B.weight"),),
}


@dataclass(frozen=True)
class ModuleFactors:
    """One adapted module as the file holds it; a plain LoRA is a MELoRA with n = 1.

    Attributes:
        name: the module, as PEFT's state dict names it.
        A_key, B_key: its tensors.
        A_shape, B_shape: their shapes.
        n, r: number of minis and rank of one.
        d_in, d_out: sizes of the adapted weight: features, channels, or vocabulary and width.
        scaling: the factor on B A.
        kind: what layer it is for.
        mixing: how ranks cross the blocks, as MeloraConfig has it.
        C_key, C_shape: the core's tensor, where there is one.
        permute: which channels the minis have, as MeloraConfig has it.
        P_key: the order's tensor, where there is one.
        has_start: whether A and B are measured from a start, which lies beside them.
    """

    name: str
    A_key: str
    B_key: str
    A_shape: tuple[int, ...]
    B_shape: tuple[int, ...]
    n: int
    r: int
    d_in: int
    d_out: int
    scaling: float
    kind: Kind = "linear"
    mixing: str = "none"
    C_key: str | None = None
    C_shape: tuple[int, ...] = ()
    permute: str = "none"
    P_key: str | None = None
    has_start: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of its tensors."""
        starts = (start_key(self.A_key), start_key(self.B_key)) if self.has_start else ()
        return tuple(key for key in (self.A_key, self.B_key, *starts, self.C_key, self.P_key) if key is not None)

    @property
    def base_name(self) -> str:
        """The module's name in the base model."""
        return self.name.replace(".base_layer", "")

    @property
    def equivalent_rank(self) -> int:
        """The highest rank of the update, n * r, or 2 n r with a start; of one expert's matrix if there are several."""
        return self.n * self.r * (2 if self.has_start else 1)

    @property
    def experts(self) -> int:
        """How many matrices are stacked in the weight."""
        return self.A_shape[1] if self.kind == "parameter" and len(self.A_shape) == 4 else 1

    @property
    def parameters(self) -> int:
        """Trained numbers: those of A, B and C."""
        core = 0 if self.C_key is None else math.prod(self.C_shape)
        return math.prod(self.A_shape) + math.prod(self.B_shape) + core

    @property
    def lora_parameters(self) -> int:
        """What a LoRA of the same equivalent rank needs."""
        kernel = math.prod(self.A_shape[3:]) if self.kind == "convolution" else 1
        return self.equivalent_rank * self.experts * (self.d_in * kernel + self.d_out)


def start_key(key: str) -> str:
    """The name of the start of a factor, by that factor's."""
    return key.removesuffix(".weight") + START


def read_modules(file: Path, config: Any, shapes: Shapes) -> list[ModuleFactors]:
    """Every adapted module of a file, its shapes checked against the config.

    Raises:
        MeloraError: a factor is missing, or has not the shape that the config gives it.
    """
    found = {}
    for ends in _ENDS[config.peft_type.value]:
        for key in shapes:
            for end in ends:
                if key.endswith(end):
                    found[key.removesuffix(end)] = ends
    modules = []
    for stem, ends in found.items():
        keys = stem + ends[0], stem + ends[1]
        for key in keys:
            if key not in shapes:
                raise MeloraError(f"{file}: tensor {key} is missing; save or download it again")
        if isinstance(config, MeloraConfig):
            modules.append(_melora_module(file, config, stem, keys, shapes, found.keys()))
        else:
            modules.append(_lora_module(file, config, stem, keys, shapes))
    return modules


def _melora_module(
    file: Path, config: MeloraConfig, stem: str, keys: tuple[str, str], shapes: Shapes, stems: Any
) -> ModuleFactors:
    name, A, B = stem.removeprefix(PREFIX), shapes[keys[0]], shapes[keys[1]]
    kind = _kind(config, stem, keys, A, B, stems)
    r, n, alpha = _settings(file, config, name, kind, A)
    for key, shape, wanted in zip(keys, (A, B), _wanted(kind, n, r, A, B), strict=True):
        sizes = [size for size in wanted if isinstance(size, int)]
        if len(shape) != len(wanted) or sizes != [
            got for size, got in zip(wanted, shape, strict=True) if isinstance(size, int)
        ]:
            raise MeloraError(
                f"{file}: tensor {key} has shape {list(shape)}, but n={n}, r={r} in adapter_config.json ask for "
                f"({', '.join(map(str, wanted))}); the two files are not of one adapter"
            )
    d_in = A[2] if kind == "embedding" else n * A[-1] if kind == "parameter" else n * A[2]
    d_out = n * B[-2]
    _check_starts(file, config, keys, (A, B), shapes)
    scaling = alpha / (r**0.5 if config.use_rslora else r)
    C_key = f"{stem}.melora_C.weight" if config.mixing == "learned" else None
    experts = A[1:2] if kind == "parameter" and len(A) == 4 else ()
    C_shape = _shape_of(file, C_key, (*experts, r, n, n), shapes)
    P_key = f"{stem}.melora_P.weight" if config.permute == "correlation" else None
    _shape_of(file, P_key, (d_in + d_out,), shapes)
    if config.permute != "none" and kind != "linear":
        raise MeloraError(f"{file}: {name} has permute={config.permute!r}, which is for linear layers; save it again")
    return ModuleFactors(
        *(name, *keys, A, B, n, r, d_in, d_out, scaling, kind),
        mixing=config.mixing,
        C_key=C_key,
        C_shape=C_shape,
        permute=config.permute,
        P_key=P_key,
        has_start=has_start(config.init_weights),
    )


def _check_starts(
    file: Path, config: MeloraConfig, keys: tuple[str, str], own: tuple[tuple[int, ...], ...], shapes: Shapes
) -> None:
    """Starts of the factors' shapes where the config's init_weights asks for them, and none elsewhere."""
    for key, shape in zip(keys, own, strict=True):
        found = shapes.get(start_key(key))
        if found == (shape if has_start(config.init_weights) else None):
            continue
        problem = "is not expected" if found is not None and not has_start(config.init_weights) else "is missing"
        if found is not None and has_start(config.init_weights):
            problem = f"has shape {list(found)} instead of {list(shape)}"
        raise MeloraError(
            f"{file}: tensor {start_key(key)} {problem}, for init_weights={config.init_weights!r} in "
            "adapter_config.json; the two files are not of one adapter"
        )


def _shape_of(file: Path, key: str | None, wanted: tuple[int, ...], shapes: Shapes) -> tuple[int, ...]:
    if key is None:
        return ()
    if key not in shapes:
        raise MeloraError(f"{file}: tensor {key} is missing; save or download it again")
    if shapes[key] != wanted:
        raise MeloraError(
            f"{file}: tensor {key} has shape {list(shapes[key])}, but adapter_config.json asks for "
            f"{list(wanted)}; the two files are not of one adapter"
        )
    return wanted


def _kind(
    config: MeloraConfig, stem: str, keys: tuple[str, str], A: tuple[int, ...], B: tuple[int, ...], stems: Any
) -> Kind:
    if keys[0].endswith(".melora_embedding_A.weight"):
        return "embedding"
    if config.target_parameters and not stem.endswith(OUT_PROJ):
        base_name = stem.removeprefix(PREFIX).replace(".base_layer", "")
        if not check_target_module_exists(config, base_name):
            return "parameter"
    if f"{stem}{OUT_PROJ}" in stems:
        return "attention"
    return "convolution" if len(A) > 3 and len(B) == 3 else "linear"


def _settings(file: Path, config: MeloraConfig, name: str, kind: Kind, A: tuple[int, ...]) -> tuple[int, int, float]:
    """(r, n, lora_alpha) that the config gives a module."""
    if kind != "parameter":
        return module_settings(config, name.removesuffix(OUT_PROJ))
    # Patterns name the parameter, and the file names the module only: which parameter, its place in the nest would say.
    base_name = name.replace(".base_layer", "")
    leaves = [target.rpartition(".")[2] for target in config.target_parameters or ()]
    possible = {module_settings(config, f"{base_name}.{leaf}") for leaf in leaves}
    fitting = [settings for settings in possible if settings[:2] == A[-2:-1] + A[:1]] or list(possible)
    if len(fitting) > 1:
        raise MeloraError(
            f"{file}: patterns give the parameters of {base_name} different settings, and the file does not say which "
            f"parameter is which; load it with PeftModel.from_pretrained and merge instead"
        )
    return fitting[0]


def _wanted(
    kind: Kind, n: int, r: int, A: tuple[int, ...], B: tuple[int, ...]
) -> tuple[tuple[int | str, ...], tuple[int | str, ...]]:
    """The shapes that A and B should have; a word where any size will do."""
    if kind == "embedding":
        return (n, r, "V"), (n, "d / n", r)
    if kind == "convolution":
        fits = r % B[2] == 0
        return (n, r, "d_in / n", *("kernel" for _ in A[3:])), (n, "d_out / n", "r / q" if fits else r)
    if kind == "parameter" and len(A) == 4:
        return (n, A[1], r, "d_in / n"), (n, A[1], "d_out / n", r)
    return (n, r, "d_in / n"), (n, "d_out / n", r)


def _lora_module(file: Path, config: LoraConfig, stem: str, keys: tuple[str, str], shapes: Shapes) -> ModuleFactors:
    A, B = shapes[keys[0]], shapes[keys[1]]
    if len(A) != 2 or len(B) != 2 or A[0] != B[1] or config.target_parameters:
        raise MeloraError(
            f"{file}: {keys[0]} has shape {list(A)} and {keys[1]} {list(B)}; (r, d_in) and (d_out, r) of a linear "
            "layer are needed"
        )
    name = stem.removeprefix(PREFIX)
    patterns = config.alpha_pattern or {}
    alpha = patterns.get(get_pattern_key(list(patterns), name), config.lora_alpha)
    scaling = alpha / (A[0] ** 0.5 if config.use_rslora else A[0])
    return ModuleFactors(name, *keys, A, B, 1, A[0], A[1], B[0], scaling)
