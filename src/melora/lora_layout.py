"""The tensors of a plain LoRA that does exactly what a MELoRA does, laid out as PEFT's LoRA has them (0.21)."""

import torch
import torch.nn.functional as F

from .errors import MeloraError
from .file_modules import ModuleFactors
from .ops.mixing import dense_columns
from .permutation import placed


def lora_factors(
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    rank: int,
    mixing: str = "none",
    core: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense LoRA factors with lora_B @ lora_A = scaling * blockdiag(B_i A_i), or what `mixing` makes of it.

    Args:
        A: (n, r, d_in / n).
        B: (n, d_out / n, r).
        scaling: goes into lora_B. Factors of 16 bits become fp32 where theirs would round the product.
        rank: rows of lora_A and columns of lora_B, at least n * r; those beyond n * r are zero.
        mixing, core: what goes into lora_B, so that lora_A is block-diagonal in any case.

    Returns:
        lora_A (rank, d_in) and lora_B (d_out, rank), contiguous.
    """
    columns = _columns(B, scaling, mixing, core)
    missing = rank - A.shape[0] * A.shape[1]
    # Cast while compact: a dense fp64 temporary for every module left the heap in holes, twice the file's size.
    lora_A = _padded(torch.block_diag(*A.to(columns.dtype)), (0, 0, 0, missing))
    return lora_A.contiguous(), _padded(columns, (0, missing)).contiguous()


def _columns(B: torch.Tensor, scaling: float, mixing: str, core: torch.Tensor | None) -> torch.Tensor:
    """`dense_columns` times scaling; by a core in fp64, since its products are rounded but once then."""
    if core is not None:
        return _narrowed(dense_columns(B.double(), core.double(), False) * scaling, B.dtype)
    return dense_columns(_scaled(B, scaling), None, mixing == "shuffle")


def dense_factors(
    module: ModuleFactors,
    A: torch.Tensor,
    B: torch.Tensor,
    core: torch.Tensor | None,
    order: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two factors of the whole update without scaling, in fp64, whatever mixes its ranks or permutes its channels.

    Args:
        module: of any kind.
        A, B: as AdapterFiles.factors gives them.
        core, order: as lora_tensors takes them.

    Returns:
        A (N, n * r, d_in) and B (N, d_out, n * r), N the number of experts, else 1. Of a convolution with d_in * kernel
        columns; of an embedding the update's transpose, width x vocabulary. An attention's rows are in the order of
        B's: query's, key's and value's of each mini.
    """
    A, B = A.double(), B.double()
    if module.kind == "embedding":
        return A.flatten(0, 1)[None], _columns(B, 1.0, module.mixing, core)[None]
    if module.kind == "parameter" and A.dim() == 4:
        cores = [None] * module.experts if core is None else list(core)
        rank = A.shape[0] * A.shape[2]
        pairs = [lora_factors(A[:, e], B[:, e], 1.0, rank, module.mixing, c) for e, c in enumerate(cores)]
        return torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])
    rows, columns = lora_factors(A.flatten(2), B, 1.0, A.shape[0] * A.shape[1], module.mixing, core)
    if module.permute != "none":
        of_in, of_out = (None, None) if order is None else order.split([module.d_in, module.d_out])
        rows, columns = placed(rows.T, module.n, of_in).T, placed(columns, module.n, of_out)
    return rows[None], columns[None]


def lora_tensors(
    module: ModuleFactors,
    A: torch.Tensor,
    B: torch.Tensor,
    rank: int,
    groups: int = 1,
    core: torch.Tensor | None = None,
    order: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """The LoRA tensors of one module, by the end of their names.

    Args:
        module: says what layer it is.
        A, B: its factors, as AdapterFiles.factors gives them.
        rank: of the LoRA: at least n * r, and divisible by `groups`.
        groups: of the base, where it is a convolution.
        core: C, where the module has one.
        order: of its channels, where a calibration found one.

    Raises:
        MeloraError: `groups` can't be the base's.
    """
    names = ("lora_A.weight", "lora_B.weight")
    if module.kind == "convolution":
        if module.mixing == "none":
            pair = _convolution(module, A, B, rank, groups)
        else:  # which a convolution with groups can't have
            pair = lora_factors(A.flatten(2), B, module.scaling, rank, module.mixing, core)
            pair = pair[0].unflatten(1, (-1, *A.shape[3:])), pair[1][(...,) + (None,) * (A.dim() - 3)]
    elif module.kind == "embedding":
        names = ("lora_embedding_A", "lora_embedding_B")
        columns = _columns(B, module.scaling, module.mixing, core)
        missing = rank - module.equivalent_rank
        pair = _padded(A.flatten(0, 1).to(columns.dtype), (0, 0, 0, missing)), _padded(columns, (0, missing))
    elif module.kind == "parameter" and A.dim() == 4:
        experts = [
            lora_factors(A[:, e], B[:, e], module.scaling, rank, module.mixing, None if core is None else core[e])
            for e in range(module.experts)
        ]
        # LoRA's own order: lora_A has an expert's ranks as neighbouring rows, lora_B a rank's experts as columns.
        pair = torch.cat([a for a, _ in experts]), torch.stack([b for _, b in experts], dim=2).flatten(1)
    else:
        pair = lora_factors(A, B, module.scaling, rank, module.mixing, core)
        if module.permute != "none":
            of_in, of_out = (None, None) if order is None else order.split([module.d_in, module.d_out])
            pair = placed(pair[0].T, module.n, of_in).T, placed(pair[1], module.n, of_out)
        if (
            module.kind == "attention"
        ):  # a mini's rows are query's, key's and value's; the base's are all of query's, ...
            pair = pair[0], pair[1].unflatten(0, (module.n, 3, -1)).transpose(0, 1).flatten(0, 2)
    return {name: tensor.contiguous() for name, tensor in zip(names, pair, strict=True)}


def _convolution(
    module: ModuleFactors, A: torch.Tensor, B: torch.Tensor, rank: int, groups: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """lora_A (rank, d_in, *kernel), over all channels, and lora_B (d_out, rank / groups, 1, ...), one per group."""
    n, r = module.n, A.shape[1]
    spanned = r // B.shape[2]
    if groups != n * spanned if spanned > 1 else n % groups:
        raise MeloraError(
            f"{module.name}: groups={groups} can't be the convolution's: n={n} and the adapter's shapes fit "
            f"{n * spanned if spanned > 1 else f'a divisor of {n}'}; pass what the base layer has"
        )
    scaled = _scaled(B, module.scaling)
    rows = torch.block_diag(*A.flatten(2).to(scaled.dtype))
    missing = (rank - n * r) // groups  # every group of ranks is padded at its own end
    lora_A = _padded(rows.unflatten(0, (groups, -1)), (0, 0, 0, missing)).flatten(0, 1)
    if spanned > 1:
        columns = scaled.flatten(0, 1)
    else:
        columns = torch.cat([torch.block_diag(*group) for group in scaled.unflatten(0, (groups, -1))])
    lora_B = _padded(columns, (0, missing))
    ones = (1,) * (A.dim() - 3)
    return lora_A.unflatten(1, (-1, *A.shape[3:])), lora_B.unflatten(1, (-1, *ones))


def _padded(x: torch.Tensor, by: tuple[int, ...]) -> torch.Tensor:
    """As F.pad, without a copy where there is nothing to add."""
    return F.pad(x, by) if any(by) else x


def _scaled(B: torch.Tensor, scaling: float) -> torch.Tensor:
    """scaling * B, multiplied in fp64: in B's own dtype, or in fp32 if that has 16 bits that do not hold it exactly."""
    return _narrowed(B.to(torch.float64) * scaling, B.dtype)


def _narrowed(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """An fp64 tensor in `dtype`, or in fp32 if that has 16 bits that do not hold it exactly."""
    own = exact.to(dtype)
    if dtype in (torch.float16, torch.bfloat16) and not torch.equal(own.to(torch.float64), exact):
        return exact.to(torch.float32)
    return own
