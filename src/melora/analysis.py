"""What is in a trained adapter: counts, rank, size and place of every update, diversity of minis, from the factors."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .adapter_files import ModuleFactors, read_adapter
from .config import positive_int
from .diversity import Overlap, column_spaces, mean_overlap, row_spaces, subspace_overlap
from .errors import MeloraError
from .lora_layout import dense_factors
from .off_diagonal import off_diagonal_share


@dataclass(frozen=True)
class LayerReport:
    """One adapted module.

    Attributes:
        name: the module.
        d_in, d_out: sizes of its weight.
        n, r: number of minis and rank of one.
        equivalent_rank: n * r, the highest rank that the update can have, or 2 n r where A and B are measured from a
            start (init_weights="pissa" and the like). A stack of expert matrices counts as one block-diagonal matrix
            of all of them, here and in what follows.
        rank: numerical rank of dW.
        effective_rank: exp of the entropy of dW's normalised singular values (Roy and Vetterli, 2007); 0 if dW = 0.
        norm: Frobenius norm of dW, scaling included.
        parameters: numbers in A and B, starts aside.
        lora_parameters: what a LoRA of the same equivalent rank needs.
        blocks: the number of diagonal blocks that `off_diagonal` is measured against.
        off_diagonal: the share of ||dW||_F^2 outside them; None for one block, an embedding, or dW = 0.
        row_overlap, column_overlap: how alike the minis' A and B are, by the angles between their row and column
            spaces; None without two minis that are not zero.
    """

    name: str
    d_in: int
    d_out: int
    n: int
    r: int
    equivalent_rank: int
    rank: int
    effective_rank: float
    norm: float
    parameters: int
    lora_parameters: int
    blocks: int
    off_diagonal: float | None
    row_overlap: Overlap | None
    column_overlap: Overlap | None


@dataclass(frozen=True)
class AdapterReport:
    """All layers of an adapter, and totals.

    Attributes:
        method: "MELORA" or "LORA".
        layers: one LayerReport a module.
        other_parameters: numbers in the file that are no factors (trained heads, biases).
    """

    method: str
    layers: list[LayerReport]
    other_parameters: int

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def lora_parameters(self) -> int:
        """Parameters of a LoRA of the same rank in every layer."""
        return sum(layer.lora_parameters for layer in self.layers)

    @property
    def off_diagonal(self) -> float | None:
        """The share of the squared norm of all updates together, as far as it is measured, outside their blocks."""
        measured = [(layer.off_diagonal, layer.norm**2) for layer in self.layers if layer.off_diagonal is not None]
        total = sum(square for _, square in measured)
        return sum(share * square for share, square in measured) / total if total else None

    @property
    def row_overlap(self) -> Overlap | None:
        """Over all pairs of minis of all layers."""
        return mean_overlap([layer.row_overlap for layer in self.layers])

    @property
    def column_overlap(self) -> Overlap | None:
        """Over all pairs of minis of all layers."""
        return mean_overlap([layer.column_overlap for layer in self.layers])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, totals included."""
        overlaps = {"row_overlap": self.row_overlap, "column_overlap": self.column_overlap}
        return {
            **asdict(self),
            "parameters": self.parameters,
            "lora_parameters": self.lora_parameters,
            "off_diagonal": self.off_diagonal,
            **{name: None if overlap is None else asdict(overlap) for name, overlap in overlaps.items()},
        }


def inspect_adapter(path: str | Path, *, blocks: int | None = None) -> AdapterReport:
    """Measure every module of a MELoRA or LoRA adapter folder.

    Args:
        path: the folder.
        blocks: how many diagonal blocks to measure `off_diagonal` against; by default each module's own n.

    Raises:
        MeloraError: the folder is damaged (see read_adapter), a factor is not finite, or `blocks` does not divide both
            sizes of a module.
    """
    if blocks is not None:
        positive_int("blocks", blocks)
    files = read_adapter(path)
    tensors = files.load()
    layers = []
    for module in files.modules:
        A, B = files.factors(tensors, module)
        core = files.core(tensors, module)
        for key, factor in ((module.A_key, A), (module.B_key, B), (module.C_key, core)):
            if factor is not None and not torch.isfinite(factor).all():
                raise MeloraError(f"{path}: {key} holds NaN or infinity; the training diverged, train again")
        compared = blocks or module.n
        off_diagonal = off_diagonal_share(module, A, B, compared, core, files.order(tensors, module))
        s = singular_values(*_matrices(module, A, B, core), module.scaling)
        layers.append(
            LayerReport(
                name=module.name,
                d_in=module.d_in,
                d_out=module.d_out,
                n=module.n,
                r=module.r,
                equivalent_rank=module.equivalent_rank * module.experts,
                rank=numerical_rank(s, max(module.d_in, module.d_out), tensors[module.A_key].dtype),
                effective_rank=effective_rank(s),
                norm=float(s.square().sum().sqrt()),
                parameters=module.parameters,
                lora_parameters=module.lora_parameters,
                blocks=compared,
                off_diagonal=off_diagonal,
                row_overlap=subspace_overlap(row_spaces(module, A)),
                column_overlap=subspace_overlap(column_spaces(module, B)),
            )
        )
    other = sum(tensors[key].numel() for key in files.other_keys())
    return AdapterReport(str(files.config.peft_type.value), layers, other)


def _matrices(
    module: ModuleFactors, A: torch.Tensor, B: torch.Tensor, core: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A (N, r, columns) and B (N, rows, r) with the singular values of dW, whatever the layer.

    The update of a convolution is a matrix of d_out x (d_in * kernel), that of an embedding width x vocabulary, where
    all minis share the columns. (For minis that span groups of a convolution, the matrix of the same convolution
    without groups.)
    """
    if module.mixing != "none":
        return dense_factors(module, A, B, core)
    if module.kind == "embedding":
        return A.flatten(0, 1)[None], torch.block_diag(*B)[None]
    if module.kind == "parameter" and A.dim() == 4:
        return A.flatten(0, 1), B.flatten(0, 1)
    if module.kind == "convolution":
        spanned = A.shape[1] // B.shape[2]  # groups of the base that a mini spans, each with its own share of the ranks
        return A.flatten(2), torch.stack([torch.block_diag(*mini) for mini in B.unflatten(1, (spanned, -1))])
    return A, B


def singular_values(A: torch.Tensor, B: torch.Tensor, scaling: float) -> torch.Tensor:
    """The non-zero singular values of scaling * blockdiag(B_i A_i), descending, in fp64.

    Those of a block-diagonal matrix are the blocks' own; B_i A_i = Q_B (R_B R_A^T) Q_A^T has those of an r x r core, so
    no d_out x d_in matrix is ever built.

    Args:
        A: (n, r, d_in / n).
        B: (n, d_out / n, r).

    Returns:
        (n * min(r, d_in / n, d_out / n),)
    """
    R_A = torch.linalg.qr(A.double().transpose(1, 2), mode="r").R
    R_B = torch.linalg.qr(B.double(), mode="r").R
    s: torch.Tensor = torch.linalg.svdvals(R_B @ R_A.transpose(1, 2)).flatten() * abs(scaling)
    return torch.sort(s, descending=True).values


def numerical_rank(s: torch.Tensor, size: int, dtype: torch.dtype) -> int:
    """How many singular values exceed the largest times `size` times the dtype's epsilon, as numpy's matrix_rank.

    Args:
        s: singular values.
        size: the larger side of the matrix.
        dtype: of the factors as they were trained.
    """
    if s.numel() == 0:
        return 0
    return int((s > s.max() * size * torch.finfo(dtype).eps).sum())


def effective_rank(s: torch.Tensor) -> float:
    """exp(-sum p log p), p = s / sum(s): as many equal singular values would have this entropy. 0 for a zero matrix."""
    total = s.sum()
    if total == 0:
        return 0.0
    p = s[s > 0] / total
    return float(torch.exp(-(p * p.log()).sum()))
