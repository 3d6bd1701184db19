"""How much of an update lies outside the diagonal blocks, from the factors alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .errors import MeloraError
from .file_modules import ModuleFactors
from .lora_layout import dense_factors
from .shapes import divisors


@dataclass(frozen=True)
class Piece:
    """A rectangle of dW that may differ from zero, as the product B A; the pieces of an update do not overlap.

    Attributes:
        row, column: where its first row and column lie in the matrix.
        B: (..., rows, k), scaling included; leading dimensions are matrices of a stack, such as experts.
        A: (..., k, columns).
    """

    row: int
    column: int
    B: torch.Tensor
    A: torch.Tensor


def update_pieces(
    module: ModuleFactors,
    A: torch.Tensor,
    B: torch.Tensor,
    core: torch.Tensor | None = None,
    order: torch.Tensor | None = None,
) -> list[Piece]:
    """dW of a module in pieces, in fp64: the one place that knows which blocks of it the factors fill.

    Query, key and value of an attention's in-projection are three matrices at the same place. A convolution is the
    matrix d_out x (d_in * kernel). An embedding has no blocks, since every mini reads all of its rows: no pieces.

    Args:
        module: says what layer it is.
        A, B: its factors as AdapterFiles.factors gives them.
        core, order: what mixes its ranks and permutes its channels, as AdapterFiles gives them. Such an update is one
            piece, of which every block may differ from zero.
    """
    if module.kind == "embedding":
        return []
    if module.mixing != "none" or module.permute != "none":
        return _whole(module, *dense_factors(module, A, B, core, order))
    A, B = A.double(), B.double() * module.scaling
    if module.kind == "convolution":
        spanned = A.shape[1] // B.shape[2]  # groups of the base that a mini spans, each with its own share of the ranks
        A, B = A.flatten(2), torch.stack([torch.block_diag(*mini) for mini in B.unflatten(1, (spanned, -1))])
    parts = _parts(module)
    rows, columns = B.shape[-2] // parts, A.shape[-1]
    return [
        Piece(i * rows, i * columns, B[i, ..., part * rows : (part + 1) * rows, :], A[i])
        for i in range(module.n)
        for part in range(parts)
    ]


def _whole(module: ModuleFactors, A: torch.Tensor, B: torch.Tensor) -> list[Piece]:
    """A piece as large as dW; of an attention one for query, key and value each, whose rows B has mini by mini."""
    parts = _parts(module)
    if parts > 1:
        B = B.unflatten(1, (module.n, parts, -1)).transpose(1, 2).flatten(1, 3)
    rows = B.shape[-2] // parts
    return [Piece(0, 0, B[..., i * rows : (i + 1) * rows, :] * module.scaling, A) for i in range(parts)]


def off_diagonal_share(
    module: ModuleFactors,
    A: torch.Tensor,
    B: torch.Tensor,
    blocks: int,
    core: torch.Tensor | None = None,
    order: torch.Tensor | None = None,
) -> float | None:
    """The share of ||dW||_F^2 outside the `blocks` diagonal blocks of (d_out / blocks) x (d_in / blocks).

    0 for a MELoRA and its own n; 1 - 1 / blocks is expected of an update without any preference. No dense dW is made:
    the squared norm of B A is the trace of (B^T B)(A A^T), which are k x k, in each block.

    Args:
        module: says what layer it is.
        A, B: its factors as AdapterFiles.factors gives them.
        blocks: how many diagonal blocks to measure against.
        core, order: as in update_pieces.

    Returns:
        From 0 to 1; None where it means nothing: one block alone, an embedding, dW = 0.

    Raises:
        MeloraError: `blocks` does not divide both sizes of the module.
    """
    pieces = update_pieces(module, A, B, core, order)
    if blocks == 1 or not pieces:
        return None
    d_out = module.d_out // _parts(module)
    if module.d_in % blocks or d_out % blocks:
        both = [k for k in divisors(module.d_in) if d_out % k == 0]
        raise MeloraError(
            f"blocks={blocks}: {module.name} is {module.d_out} x {module.d_in}, and {blocks} does not divide both; "
            f"choose from {', '.join(map(str, both))}"
        )
    columns = max(piece.column + piece.A.shape[-1] for piece in pieces)  # of a convolution: d_in * kernel
    height, width = d_out // blocks, columns // blocks
    total = outside = 0.0
    for piece in pieces:
        whole = _energy(piece.B, piece.A)
        cells = list(_diagonal_cells(piece, height, width))
        total += whole
        if [(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in cells] != [
            (piece.B.shape[-2], piece.A.shape[-1])
        ]:  # else it lies inside one block: nothing is outside, not even a rounding error
            inside = sum(_energy(piece.B[..., rows, :], piece.A[..., columns]) for rows, columns in cells)
            outside += max(0.0, whole - inside)
    return outside / total if total else None


def _parts(module: ModuleFactors) -> int:
    return 3 if module.kind == "attention" else 1


def _diagonal_cells(piece: Piece, height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """The rows and columns of a piece, counted from its own first, that each diagonal block of this size covers."""
    bottom, right = piece.row + piece.B.shape[-2], piece.column + piece.A.shape[-1]
    first, last = max(piece.row // height, piece.column // width), min((bottom - 1) // height, (right - 1) // width)
    for k in range(first, last + 1):
        yield (
            slice(max(k * height, piece.row) - piece.row, min((k + 1) * height, bottom) - piece.row),
            slice(max(k * width, piece.column) - piece.column, min((k + 1) * width, right) - piece.column),
        )


def _energy(B: torch.Tensor, A: torch.Tensor) -> float:
    """||B A||_F^2, summed over a stack."""
    return float(((B.mT @ B) * (A @ A.mT)).sum())
