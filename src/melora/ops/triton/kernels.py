"""The Triton kernels: one program handles one mini i for some tokens, and reads each element of its slices once.

Names in shapes: T tokens, BT and BD the sizes of a tile along tokens and along channels (neither needs to divide
anything), R the rank r padded for tl.dot, or 1. Products are accumulated in fp32.

Rank 1 is no matrix product: it is multiplied and summed elementwise. Higher ranks are padded with zeros to a power of
two, at least 16, the least that tensor cores take along a summed dimension. The padding costs arithmetic and no memory
traffic: at R = 16 each element of x or g takes part in 16 multiply-adds a product. fp32 is multiplied as fp32, never
TF32.

Offsets are 64 bits wide, as T * d may exceed 2**31.
"""
# ruff: noqa: RET505 - Triton compiles the branch that a constant chooses, but what follows a return as well.

import triton
import triton.language as tl

INTERPRETED = triton.knobs.runtime.interpret
"""Whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1), on the CPU's tensors, to check them."""

# Guesses from the bytes moved, not measured: few, so that the first call of a shape does not take long. The interpreter
# has no clock to choose by, and small tiles let small tensors have several.
TILES = [(16, 16, 4)] if INTERPRETED else [(16, 128, 4), (32, 64, 4), (64, 64, 4), (64, 128, 8), (128, 32, 4)]
CONFIGS = [triton.Config({"BT": tokens, "BD": channels}, num_warps=warps) for tokens, channels, warps in TILES]
LONGEST_TILE = max(tokens for tokens, _, _ in TILES)
SHAPE = ["n", "r", "block_in", "block_out"]


@triton.jit
def _rows_times_rows(a, b, R: tl.constexpr):
    """a (BT, BD), b (R, BD) -> a b^T (BT, R)."""
    if R == 1:
        return tl.sum(a.to(tl.float32) * b.to(tl.float32), axis=1, keep_dims=True)
    else:
        return tl.dot(a, tl.trans(b), input_precision="ieee")


@triton.jit
def _expand(a, b, R: tl.constexpr):
    """a (BT, R), b (R, BD) -> a b (BT, BD)."""
    if R == 1:
        return a.to(tl.float32) * b.to(tl.float32)
    else:
        return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _columns_times_columns(a, b, R: tl.constexpr):
    """a (BT, R), b (BT, BD) -> a^T b (R, BD)."""
    if R == 1:
        return tl.sum(a.to(tl.float32) * b.to(tl.float32), axis=0, keep_dims=True)
    else:
        return tl.dot(tl.trans(a), b, input_precision="ieee")


@triton.jit
def _kept(seed_ptr, token, mini, channel, THRESHOLD: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr):
    """(BT, BD): whether dropout keeps channels `channel` to `channel` + BD of mini `mini`, for tokens `token` (BT).

    32 random bits an element, four elements a call of Philox, counted by (channel // 4, token, mini): what is kept
    depends on the seed and the element alone, not on tiles. The probability is exact to 2**-32.
    """
    nothing = tl.zeros((BT, BD // 4), tl.uint32)
    group = (channel // 4 + tl.arange(0, BD // 4)).to(tl.uint32)[None, :] + nothing
    row = token.to(tl.uint32)[:, None] + nothing
    first, second, third, fourth = tl.philox(tl.load(seed_ptr), group, row, nothing + mini.to(tl.uint32), nothing)
    bits = tl.reshape(tl.join(tl.join(first, third), tl.join(second, fourth)), (BT, BD))
    return bits >= tl.full((), THRESHOLD, tl.uint32)


@triton.jit
def _add_to_sum(ptr, value, mask, is_first):
    """Add to this program's own part of the workspace, which holds nothing before its first tile."""
    before = tl.load(ptr, mask=mask & (not is_first), other=0.0)
    tl.store(ptr, before + value, mask=mask)


@triton.autotune(configs=CONFIGS, key=SHAPE, restore_value=["y_ptr"])
@triton.jit
def forward_kernel(
    x_ptr,  # (T, n * block_in), strides x_row and x_column
    y_ptr,  # (T, n * block_out), contiguous; holds the base's output where ADD
    u_ptr,  # (T, n, r), contiguous: written
    A_ptr,  # (n, r, block_in), contiguous
    B_ptr,  # (n, block_out, r), contiguous
    seed_ptr,  # one integer, or None without dropout
    scaling,
    keep_scale,
    tokens,
    x_row,
    x_column,
    n: tl.constexpr,
    r: tl.constexpr,
    block_in: tl.constexpr,
    block_out: tl.constexpr,
    R: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ADD: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """y_i (+)= scaling * B_i u_i with u_i = A_i drop(x)_i, for BT tokens: one pass over x_i and one over y_i."""
    # Neighbouring programs share the tokens, so that together they read whole rows.
    mini = tl.program_id(0) % n
    token = (tl.program_id(0) // n).to(tl.int64) * BT + tl.arange(0, BT)
    rank = tl.arange(0, R)
    is_token, is_rank = (token < tokens)[:, None], (rank < r)[:, None]

    u = tl.zeros((BT, R), tl.float32)
    for start in range(0, block_in, BD):
        channel = start + tl.arange(0, BD)
        is_channel = (channel < block_in)[None, :]
        x_columns = (mini * block_in + channel).to(tl.int64)[None, :] * x_column
        x = tl.load(x_ptr + token[:, None] * x_row + x_columns, mask=is_token & is_channel, other=0.0)
        if THRESHOLD > 0:
            x = tl.where(_kept(seed_ptr, token, mini, start, THRESHOLD, BT, BD), x, 0.0)
        A_at = A_ptr + (mini * r + rank)[:, None] * block_in + channel[None, :]
        u += _rows_times_rows(x, tl.load(A_at, mask=is_rank & is_channel, other=0.0), R)
    # Rounded to x's dtype as the product of plain PyTorch is; that is also what tensor cores take.
    u = (u * keep_scale).to(x_ptr.dtype.element_ty)
    tl.store(u_ptr + token[:, None] * (n * r) + mini * r + rank[None, :], u, mask=is_token & (rank < r)[None, :])

    for start in range(0, block_out, BD):
        channel = start + tl.arange(0, BD)
        is_channel = (channel < block_out)[None, :]
        B_at = B_ptr + (mini * block_out + channel)[None, :] * r + rank[:, None]
        y = scaling * _expand(u, tl.load(B_at, mask=is_rank & is_channel, other=0.0), R)
        y_at = y_ptr + token[:, None] * (n * block_out) + mini * block_out + channel[None, :]
        if ADD:
            y += tl.load(y_at, mask=is_token & is_channel, other=0.0).to(tl.float32)
        tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=is_token & is_channel)


@triton.autotune(configs=CONFIGS, key=SHAPE, restore_value=["grad_x_ptr"])
@triton.jit
def backward_kernel(
    grad_ptr,  # (T, n * block_out), strides grad_row and grad_column
    x_ptr,  # (T, n * block_in), strides x_row and x_column
    u_ptr,  # (T, n, r), contiguous, as the forward kernel wrote it
    A_ptr,  # (n, r, block_in), contiguous
    B_ptr,  # (n, block_out, r), contiguous
    seed_ptr,  # one integer, or None without dropout
    grad_x_ptr,  # (T, n * block_in), contiguous; holds the base's gradient where ADD; None where not NEED_X
    grad_A_ptr,  # (chunks, n, r, block_in) fp32, contiguous: written; None where not NEED_A
    grad_B_ptr,  # (chunks, n, r, block_out) fp32, contiguous: written; None where not NEED_B
    scaling,
    keep_scale,
    tokens,
    chunk,
    grad_row,
    grad_column,
    x_row,
    x_column,
    n: tl.constexpr,
    r: tl.constexpr,
    block_in: tl.constexpr,
    block_out: tl.constexpr,
    R: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ADD: tl.constexpr,
    NEED_X: tl.constexpr,
    NEED_A: tl.constexpr,
    NEED_B: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """grad_x_i (+)= drop(A_i^T grad_u_i), and this chunk's sums of grad_A_i and grad_B_i, for `chunk` tokens.

    One pass over g_i, which also gives grad_u_i = scaling * B_i^T g_i, then one over x_i. A sum belongs to one program,
    which adds its tiles in order: no atomics, the same bits each time.
    """
    mini = tl.program_id(0) % n
    part = (tl.program_id(0) // n).to(tl.int64)
    rank = tl.arange(0, R)
    is_rank = (rank < r)[:, None]
    for offset in range(0, tl.minimum(chunk, tokens - part * chunk), BT):
        token = part * chunk + offset + tl.arange(0, BT)
        is_token = (token < tokens)[:, None]
        if NEED_B:
            u_at = u_ptr + token[:, None] * (n * r) + mini * r + rank[None, :]
            u = tl.load(u_at, mask=is_token & (rank < r)[None, :], other=0.0)
        grad_u = tl.zeros((BT, R), tl.float32)
        for start in range(0, block_out, BD):
            channel = start + tl.arange(0, BD)
            is_channel = (channel < block_out)[None, :]
            grad_columns = (mini * block_out + channel).to(tl.int64)[None, :] * grad_column
            g = tl.load(grad_ptr + token[:, None] * grad_row + grad_columns, mask=is_token & is_channel, other=0.0)
            if NEED_B:
                grad_B_at = grad_B_ptr + ((part * n + mini) * r + rank)[:, None] * block_out + channel[None, :]
                product = scaling * _columns_times_columns(u, g, R)
                _add_to_sum(grad_B_at, product, is_rank & is_channel, offset == 0)
            if NEED_A or NEED_X:
                B_at = B_ptr + (mini * block_out + channel)[None, :] * r + rank[:, None]
                grad_u += _rows_times_rows(g, tl.load(B_at, mask=is_rank & is_channel, other=0.0), R)
        if NEED_A or NEED_X:
            grad_u_low = (grad_u * (scaling * keep_scale)).to(x_ptr.dtype.element_ty)
            for start in range(0, block_in, BD):
                channel = start + tl.arange(0, BD)
                is_channel = (channel < block_in)[None, :]
                is_both = is_token & is_channel
                if THRESHOLD > 0:
                    kept = _kept(seed_ptr, token, mini, start, THRESHOLD, BT, BD)
                if NEED_A:
                    x_columns = (mini * block_in + channel).to(tl.int64)[None, :] * x_column
                    x = tl.load(x_ptr + token[:, None] * x_row + x_columns, mask=is_both, other=0.0)
                    if THRESHOLD > 0:
                        x = tl.where(kept, x, 0.0)
                    grad_A_at = grad_A_ptr + ((part * n + mini) * r + rank)[:, None] * block_in + channel[None, :]
                    product = _columns_times_columns(grad_u_low, x, R)
                    _add_to_sum(grad_A_at, product, is_rank & is_channel, offset == 0)
                if NEED_X:
                    A_at = A_ptr + (mini * r + rank)[:, None] * block_in + channel[None, :]
                    grad_x = _expand(grad_u_low, tl.load(A_at, mask=is_rank & is_channel, other=0.0), R)
                    if THRESHOLD > 0:
                        grad_x = tl.where(kept, grad_x, 0.0)
                    grad_x_at = grad_x_ptr + token[:, None] * (n * block_in) + mini * block_in + channel[None, :]
                    if ADD:
                        grad_x += tl.load(grad_x_at, mask=is_both, other=0.0).to(tl.float32)
                    tl.store(grad_x_at, grad_x.to(grad_x_ptr.dtype.element_ty), mask=is_both)
        # The next tile's sums may be read by other threads than wrote these.
        tl.debug_barrier()


@triton.jit
def mask_kernel(
    out_ptr,  # (T, n * block_in) bool, contiguous: written
    seed_ptr,  # one integer
    tokens,
    n: tl.constexpr,
    block_in: tl.constexpr,
    THRESHOLD: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """Which elements the dropout of the other kernels keeps, for BT tokens and one mini."""
    mini = tl.program_id(0) % n
    token = (tl.program_id(0) // n).to(tl.int64) * BT + tl.arange(0, BT)
    for start in range(0, block_in, BD):
        channel = start + tl.arange(0, BD)
        kept = _kept(seed_ptr, token, mini, start, THRESHOLD, BT, BD)
        out_at = out_ptr + token[:, None] * (n * block_in) + mini * block_in + channel[None, :]
        tl.store(out_at, kept, mask=(token < tokens)[:, None] & (channel < block_in)[None, :])
