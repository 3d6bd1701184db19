"""LoRA to MELoRA: the nearest block-diagonal update, and how much of the LoRA's it keeps.

A LoRA's update is dense; a MELoRA's is zero outside n diagonal blocks. What lies outside is lost: of an update without
structure about (n - 1) / n. So the share that is kept is always computed, and a poor import is refused.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file

from .adapter_files import PREFIX, WEIGHTS_FILE, AdapterFiles, ModuleFactors, read_adapter
from .config import MeloraConfig, positive_int
from .conversion import new_folder
from .errors import MeloraError
from .file_modules import OUT_PROJ
from .initial import has_start
from .shapes import divisors

MIN_ENERGY = 0.9


@dataclass(frozen=True)
class ImportedLayer:
    """One module of an import.

    Attributes:
        name: the module.
        d_in, d_out: sizes of its weight.
        energy: squared Frobenius norm of the LoRA's update, scaling included.
        kept: that of the MELoRA's, at most `energy`.
    """

    name: str
    d_in: int
    d_out: int
    energy: float
    kept: float

    @property
    def share(self) -> float:
        """kept / energy; 1 for an update of zero."""
        return self.kept / self.energy if self.energy else 1.0


@dataclass(frozen=True)
class LoraImport:
    """What `import_lora` wrote: the folder, n and r of every module, and the energies layer by layer."""

    path: Path
    n: int
    r: int
    layers: list[ImportedLayer]

    @property
    def share(self) -> float:
        """The share of the whole update's squared Frobenius norm that is kept."""
        return _share(self.layers)


def import_lora(
    adapter: str | Path, output: str | Path, *, n: int, r: int | None = None, min_energy: float = MIN_ENERGY
) -> LoraImport:
    """Write the nearest MELoRA of a LoRA adapter. Needs no base model.

    Args:
        adapter: the LoRA adapter's folder.
        output: the folder to make; it must not exist.
        n: number of minis in every module.
        r: rank of one mini; by default the LoRA's highest rank divided by n, at least 1: the rank stays.
        min_energy: the share of the update's energy (squared Frobenius norm) that must be kept; 0 takes anything.

    Raises:
        MeloraError: the adapter is damaged, no LoRA, or uses a feature that MELoRA does not have; n does not divide a
            module's sizes; less than min_energy would be kept; `output` exists. Nothing is written then.
    """
    if not 0.0 <= min_energy <= 1.0:
        raise MeloraError(f"min_energy must be from 0 to 1, got {min_energy!r}: choose {MIN_ENERGY}, say")
    files = read_adapter(adapter)
    if not isinstance(files.config, LoraConfig):
        raise MeloraError(f"{adapter}: is a MELORA adapter already; only LoRA is imported")
    _check_linear(files)
    _check_n(files, n)
    rank = max(module.r for module in files.modules)
    r = max(1, rank // n) if r is None else positive_int("r", r)
    config = _config(files, n, r)

    tensors = files.load()
    converted = {key: tensors[key].contiguous() for key in files.other_keys()}
    layers = []
    for module in files.modules:
        A, B, kept = nearest_minis(tensors[module.A_key], tensors[module.B_key], module.scaling, n, r)
        converted[f"{PREFIX}{module.name}.melora_A.weight"] = A
        converted[f"{PREFIX}{module.name}.melora_B.weight"] = B
        layers.append(ImportedLayer(module.name, module.d_in, module.d_out, _energy(tensors, module), kept))
    _check_energy(adapter, layers, n, r, min_energy)
    with new_folder(output) as folder:
        save_file(converted, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        config.save_pretrained(str(folder))
    return LoraImport(Path(output), n, r, layers)


def nearest_minis(
    lora_A: torch.Tensor, lora_B: torch.Tensor, scaling: float, n: int, r: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The nearest block-diagonal matrix with n blocks of rank r to scaling * lora_B @ lora_A, as minis of scaling 1.

    Nearest in the Frobenius norm: that norm is a sum over the blocks, entries outside the diagonal blocks can't be
    reached, and within a block the truncated SVD is the best of its rank (Eckart and Young, 1936). Block i is
    lora_B[rows_i] @ lora_A[:, columns_i], so its SVD is that of a small core between two QR factors: no matrix larger
    than the factors is built.

    Args:
        lora_A: (R, d_in).
        lora_B: (d_out, R).
        scaling: of the LoRA.
        n, r: number of minis, which divides d_in and d_out, and rank of one.

    Returns:
        A (n, r, d_in / n) and B (n, d_out / n, r) in lora_B's dtype, each with half of the singular values, and the
        squared Frobenius norm of the result.
    """
    R = lora_A.shape[0]
    A = lora_A.double().view(R, n, -1).permute(1, 2, 0)  # (n, d_in / n, R)
    B = lora_B.double().view(n, -1, R)
    Q_A, R_A = torch.linalg.qr(A)
    Q_B, R_B = torch.linalg.qr(B)
    U, s, Vh = torch.linalg.svd(R_B @ R_A.transpose(1, 2) * scaling, full_matrices=False)
    U, s, Vh = U[..., :r], s[:, :r], Vh[:, :r]
    root = s.sqrt()
    new_A = root.unsqueeze(2) * (Vh @ Q_A.transpose(1, 2))
    new_B = (Q_B @ U) * root.unsqueeze(1)
    missing = r - s.shape[1]  # an r above what a block can have: rows and columns of zeros
    new_A = torch.nn.functional.pad(new_A, (0, 0, 0, missing)).to(lora_B.dtype).contiguous()
    new_B = torch.nn.functional.pad(new_B, (0, missing)).to(lora_B.dtype).contiguous()
    return new_A, new_B, float(s.square().sum())


def _energy(tensors: dict[str, torch.Tensor], module: ModuleFactors) -> float:
    """||scaling * B A||^2 = scaling^2 * <B^T B, A A^T>: two R x R matrices instead of a d_out x d_in one."""
    A, B = tensors[module.A_key].double(), tensors[module.B_key].double()
    return float((B.T @ B * (A @ A.T)).sum()) * module.scaling**2


def _share(layers: list[ImportedLayer]) -> float:
    energy = sum(layer.energy for layer in layers)
    return sum(layer.kept for layer in layers) / energy if energy else 1.0


def _check_linear(files: AdapterFiles) -> None:
    """read_adapter takes LoRAs of linear layers, and of nn.MultiheadAttention, whose tensors look like those."""
    for module in files.modules:
        if module.name.endswith(OUT_PROJ):
            raise MeloraError(
                f"{files.path}: {module.base_name.rpartition('.')[0]} is an nn.MultiheadAttention; only linear layers "
                "are imported: train a MELoRA of it anew"
            )


def _check_n(files: AdapterFiles, n: int) -> None:
    positive_int("n", n)
    common = math.gcd(*(size for module in files.modules for size in (module.d_in, module.d_out)))
    for module in files.modules:
        if module.d_in % n or module.d_out % n:
            raise MeloraError(
                f"{module.name}: n={n} does not divide both d_in={module.d_in} and d_out={module.d_out}; "
                f"n that fit every module: {', '.join(map(str, divisors(common)))}"
            )


def _check_energy(adapter: str | Path, layers: list[ImportedLayer], n: int, r: int, min_energy: float) -> None:
    share, worst = _share(layers), min(layers, key=lambda layer: layer.share)
    # An exact import may lose a few last digits to rounding.
    if share < min_energy - 1e-6:
        raise MeloraError(
            f"{adapter}: a MELoRA of n={n}, r={r} keeps {share:.1%} of this LoRA's update ({worst.share:.1%} in "
            f"{worst.name}), less than the {min_energy:.1%} asked for; take a smaller n or a larger r, train a MELoRA "
            f"anew, or take the loss with --min-energy {math.floor(share * 100) / 100:g}"
        )


def _config(files: AdapterFiles, n: int, r: int) -> MeloraConfig:
    """The LoRA's config with n, r and scaling 1, for the factors hold the scaling."""
    lora = files.config
    if has_start(lora.init_lora_weights):
        raise MeloraError(
            f"{files.path}: init_lora_weights={lora.init_lora_weights!r} means that this LoRA is for a base weight "
            "with its start taken out, which PEFT does while loading; save it for the original base first, by "
            "save_pretrained with path_initial_model_for_weight_conversion"
        )
    try:
        config = MeloraConfig.from_lora(
            lora, n=n, r=r, lora_alpha=r, use_rslora=False, rank_pattern={}, alpha_pattern={}
        )
    except MeloraError as error:
        raise MeloraError(f"{files.path}: {error}") from None
    config.inference_mode = True
    return config
