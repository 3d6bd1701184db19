"""How different the minis of an adapter are: their subspaces, and their outputs.

Each mini reads a slice of the input of its own, so that the row spaces of A_i and A_j lie in different coordinates.
They are compared after aligning the slices as they lie: channel k of slice i with channel k of slice j, and likewise
the column spaces of B_i. The rotation that fits best, the other alignment at hand, makes any two subspaces of one size
coincide, so that nothing would be left to measure. The order of the channels is the base model's; where it means
nothing there (as within a hidden state), only likeness beyond chance would tell of a common cause.
"""

import math
from dataclasses import dataclass

import torch

from .file_modules import ModuleFactors


@dataclass(frozen=True)
class Overlap:
    """Principal angles between the subspaces of all pairs of minis of one layer.

    The overlap of a pair is the mean of the squared cosines of its principal angles: 1 where the smaller space lies in
    the other one, 0 where the two are orthogonal. The cosines are the singular values of Q_i^T Q_j, for orthonormal
    bases Q_i and Q_j (Björck and Golub, 1973).

    Attributes:
        mean, largest: over the pairs.
        chance: the mean expected of random subspaces: max(p, q) / w for dimensions p and q in w channels.
        chance_deviation: one standard deviation of `mean`, were the subspaces random.
        pairs: how many pairs; minis whose factor is zero have none.
    """

    mean: float
    largest: float
    chance: float
    chance_deviation: float
    pairs: int


def row_spaces(module: ModuleFactors, A: torch.Tensor) -> torch.Tensor:
    """What spans the row spaces of the A_i, (stacks, n, r, width); experts are stacks, which are not compared.

    The width is d_in / n; of a convolution d_in / n * kernel; of an embedding the vocabulary, which all minis share.
    """
    if module.kind == "parameter" and A.dim() == 4:
        return A.transpose(0, 1)
    return A.flatten(2).unsqueeze(0)


def column_spaces(module: ModuleFactors, B: torch.Tensor) -> torch.Tensor:
    """What spans the column spaces of the B_i, (stacks, n, r, width), the width d_out / n.

    Of a convolution whose minis span groups, every group is a stack, with its share of channels and ranks.
    """
    if module.kind == "parameter" and B.dim() == 4:
        return B.transpose(0, 1).mT
    if module.kind == "convolution":
        spanned = max(1, module.r // B.shape[2])  # with a start B has twice the rank, and spans one
        groups: torch.Tensor = B.unflatten(1, (spanned, -1))
        return groups.transpose(0, 1).mT
    return B.mT.unsqueeze(0)


def subspace_overlap(spans: torch.Tensor) -> Overlap | None:
    """The overlap of the minis' subspaces, over all pairs within each stack.

    Args:
        spans: (stacks, n, k, width); the k vectors span a mini's subspace, whatever their number and rank.

    Returns:
        None if there is no pair: n = 1, or fewer than two minis that are not zero.
    """
    width = spans.shape[-1]
    overlaps: list[torch.Tensor] = []
    chance = variance = 0.0
    for stack in spans:
        _, s, bases = torch.linalg.svd(stack.double(), full_matrices=False)
        tolerance = max(stack.shape[1:]) * torch.finfo(spans.dtype).eps
        kept = s > s.amax(1, keepdim=True) * tolerance  # (n, min(k, width))
        dimensions = kept.sum(1)
        vectors = (bases * kept[..., None]).flatten(0, 1)
        squares = (vectors @ vectors.T).square().unflatten(0, kept.shape).unflatten(2, kept.shape).sum((1, 3))
        i, j = torch.triu_indices(len(stack), len(stack), offset=1)
        smaller = torch.minimum(dimensions[i], dimensions[j])
        i, j, smaller = i[smaller > 0], j[smaller > 0], smaller[smaller > 0]
        overlaps.append(squares[i, j] / smaller)
        for p, q in zip(dimensions[i].tolist(), dimensions[j].tolist(), strict=True):
            chance += max(p, q) / width
            variance += _variance(p, q, width)
    found = torch.cat(overlaps)
    pairs = len(found)
    if not pairs:
        return None
    # Of random subspaces no two pairs are correlated, so that the variances add up.
    return Overlap(float(found.mean()), float(found.max()), chance / pairs, math.sqrt(variance) / pairs, pairs)


def _variance(p: int, q: int, width: int) -> float:
    """Of the overlap of two random subspaces: of the trace of two random projections' product, over min(p, q)^2."""
    if width == 1:
        return 0.0
    of_trace = 2 * p * q * (width - p) * (width - q) / (width**2 * (width - 1) * (width + 2))
    return of_trace / min(p, q) ** 2


def mean_overlap(overlaps: list[Overlap | None]) -> Overlap | None:
    """The overlap over the pairs of several layers together; None if there is no pair in them."""
    found = [overlap for overlap in overlaps if overlap is not None]
    pairs = sum(overlap.pairs for overlap in found)
    if not pairs:
        return None
    return Overlap(
        mean=sum(overlap.mean * overlap.pairs for overlap in found) / pairs,
        largest=max(overlap.largest for overlap in found),
        chance=sum(overlap.chance * overlap.pairs for overlap in found) / pairs,
        chance_deviation=math.sqrt(sum((overlap.chance_deviation * overlap.pairs) ** 2 for overlap in found)) / pairs,
        pairs=pairs,
    )


def linear_cka(outputs: torch.Tensor) -> torch.Tensor:
    """Linear CKA between the outputs of all pairs of minis (Kornblith et al., 2019).

    ||Y_i^T Y_j||_F^2 / (||Y_i^T Y_i||_F ||Y_j^T Y_j||_F) with the columns centred: how alike two minis arrange the same
    tokens, whatever rotation, scale or offset each applies in its own channels. Of two minis of rank 1 it is the
    squared correlation of their scalars a_i x_i. With few tokens it is biased upwards: compare it at one number of
    tokens only.

    Args:
        outputs: (tokens, n, width).

    Returns:
        (n, n), in fp64; NaN for a mini whose output does not vary.
    """
    centred = outputs.double() - outputs.double().mean(0)
    largest = centred.abs().amax((0, 2), keepdim=True)  # for the squares of squares of tiny outputs
    centred = torch.where(largest > 0, centred / largest, 0.0)
    everything = centred.flatten(1)
    squares = torch.stack(
        [
            (centred[:, i].T @ everything).square().sum(0).unflatten(0, centred.shape[1:]).sum(1)
            for i in range(centred.shape[1])
        ]
    )
    scale = squares.diagonal().sqrt()
    cka: torch.Tensor = squares / (scale[:, None] * scale)
    return cka


def mean_over_pairs(matrix: torch.Tensor) -> float | None:
    """The mean of a symmetric (n, n) matrix over its pairs without NaN; None if there is none."""
    i, j = torch.triu_indices(len(matrix), len(matrix), offset=1)
    values = matrix[i, j]
    values = values[~values.isnan()]
    return float(values.mean()) if len(values) else None
