"""The full softmax loss through Triton kernels, for narrow tables: logits stay in registers.

Three walks over tiles of tokens and classes, each of which makes the logits again: one finds every
token's log-sum-exp, one the gradient of hidden, one that of table and bias. That is 10 d operations
a pair instead of 6 d, but no logit goes through memory, which at d <= 128 costs more than the
products. A program keeps a tile of one side and walks over a share of the other; shares are summed
in a fixed order. No gradient is passed over for being small.

Products take the inputs as they are, bf16 under autocast, and sum in fp32.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from models.ops import gpu, precision, segments
from models.ops.lookup import triton as lookup

PROGRAMS = 512  # at least, where there is work for so many: a few for each processor
LOG2_E = tl.constexpr(1.4426950408889634)


def loss(
    hidden: torch.Tensor, table: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """The fp32 sum of the losses; see ``full_softmax_loss``."""
    dtype = precision.factors(hidden, table)
    leaves = [tensor for tensor in (hidden, table, bias) if tensor is not None]
    train = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in leaves)
    wide_bias = None if bias is None else bias.float()
    total: torch.Tensor = Loss.apply(hidden.to(dtype), table.to(dtype), wide_bias, targets, train)
    return total


class Loss(torch.autograd.Function):
    """Makes the gradients with the loss, where training, and keeps only them, in fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        table: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        train: bool,
    ) -> torch.Tensor:
        # What is trained comes first. Only the GPU knows how much that is: shapes are of all.
        trained, order = (targets > 0).sort(descending=True, stable=True)
        count, own = trained.sum(), targets[order]
        x, w = hidden[order], table.contiguous()
        added = w.new_zeros(len(w), dtype=torch.float32) if bias is None else bias.contiguous()
        log_totals = find_log_totals(x, w, added, count)
        scores = (x.float() * w[own].float()).sum(1) + added[own]
        if train:
            dx = find_hidden_gradient(x, w, added, log_totals, count) - w[own].float()
            dtable, dbias = find_table_gradient(x, w, added, log_totals, count)
            if len(x):
                places = lookup.sort(torch.where(trained, own, -1))
                minus = x.new_full((len(x),), -1, dtype=torch.float32)
                lookup.add_rows_(dtable, places, x, minus)
                lookup.add_rows_(dbias[:, None], places, minus[:, None])
            dhidden = torch.empty(hidden.shape, dtype=torch.float32, device=hidden.device)
            dhidden[order] = dx.where(trained[:, None], 0)
            ctx.save_for_backward(dhidden, dtable, dbias)
            ctx.dtype = hidden.dtype
        return (log_totals - scores).where(trained, 0).double().sum().float()

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dtypes = (ctx.dtype, ctx.dtype, torch.float32)
        made = zip(ctx.saved_tensors, dtypes, ctx.needs_input_grad[:3], strict=True)
        scaled = ((g * scale).to(dtype) if needed else None for g, dtype, needed in made)
        return *scaled, None, None


def sizes_of(x: torch.Tensor, w: torch.Tensor) -> dict[str, Any]:
    """What all kernels are told."""
    narrow = x.dtype == torch.bfloat16
    lanes = max(16, triton.next_power_of_2(x.shape[1]))
    return {
        "tokens": len(x),
        "classes": len(w),
        "width": x.shape[1],
        "PRECISION": segments.product_precision(x.dtype),
        # Triton's interpreter multiplies no bf16.
        "FACTOR": tl.bfloat16 if narrow and not gpu.interpreting else tl.float32,
        "TOKENS": 64,
        # Chosen by what the compiler reports for an H100: larger tiles or fewer warps spill.
        "CLASSES": 128 if narrow else 64 if lanes <= 64 else 32,
        "WIDTH": lanes,
        "num_warps": 8,
        "num_stages": 2,
    }


def shares(kept: int, kept_tile: int, walked: int, walked_tile: int) -> tuple[int, int]:
    """Programs by tiles of the kept side, and by shares of the walked side."""
    tiles = triton.cdiv(kept, kept_tile)
    return tiles, max(1, min(triton.cdiv(walked, walked_tile), triton.cdiv(PROGRAMS, tiles)))


def find_log_totals(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor, count: torch.Tensor
) -> torch.Tensor:
    """log Σ_c exp(x · w_c + bias_c) of the first ``count`` (0-dim) tokens, fp32 ``[T]``."""
    if len(x) == 0:
        return x.new_zeros(0, dtype=torch.float32)
    sizes = sizes_of(x, w)
    grid = shares(len(x), sizes["TOKENS"], len(w), sizes["CLASSES"])
    parts = torch.empty(grid[1], len(x), dtype=torch.float32, device=x.device)
    log_total_kernel[grid](x, w, bias, count, parts, **sizes)
    return parts.logsumexp(0)


def find_hidden_gradient(
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor,
    log_totals: torch.Tensor,
    count: torch.Tensor,
) -> torch.Tensor:
    """Σ_c p_c w_c of the first ``count`` tokens, fp32 ``[T, d]``."""
    if len(x) == 0:
        return torch.zeros_like(x, dtype=torch.float32)
    sizes = sizes_of(x, w)
    grid = shares(len(x), sizes["TOKENS"], len(w), sizes["CLASSES"])
    parts = torch.empty(grid[1], *x.shape, dtype=torch.float32, device=x.device)
    hidden_kernel[grid](x, w, bias, count, log_totals, parts, **sizes)
    return parts.sum(0)


def find_table_gradient(
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor,
    log_totals: torch.Tensor,
    count: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ_t p_t x_t over the first ``count`` tokens, fp32 ``[C, d]``, and Σ_t p_t ``[C]``."""
    sizes = sizes_of(x, w)
    grid = shares(len(w), sizes["CLASSES"], len(x), sizes["TOKENS"])
    parts = torch.empty(grid[1], *w.shape, dtype=torch.float32, device=x.device)
    of_bias = torch.empty(grid[1], len(w), dtype=torch.float32, device=x.device)
    table_kernel[grid](x, w, bias, count, log_totals, parts, of_bias, **sizes)
    if grid[1] == 1:
        return parts[0], of_bias[0]
    return parts.sum(0), of_bias.sum(0)


@triton.jit
def load_rows(
    base: tl.tensor,
    row: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    WIDTH: tl.constexpr,
    FACTOR: tl.constexpr,
) -> tl.tensor:
    """Rows of a matrix, zeros past its edges."""
    column = tl.arange(0, WIDTH)
    at = row.to(tl.int64)[:, None] * width + column[None, :]
    inside = (row < rows)[:, None] & (column < width)[None, :]
    return tl.load(base + at, inside, 0.0).to(FACTOR)


@triton.jit
def scores_of(
    x: tl.tensor,
    w: tl.tensor,
    bias: tl.tensor,
    klass: tl.tensor,
    classes: tl.tensor,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """Logits in units of log 2, minus infinity past the last class."""
    added = tl.load(bias + klass, klass < classes, float("-inf"))
    logits = tl.dot(x, tl.trans(w), input_precision=PRECISION) + added[None, :]
    return logits * LOG2_E


@triton.jit
def log_total_kernel(
    hidden: tl.tensor,
    table: tl.tensor,
    bias: tl.tensor,
    trained: tl.tensor,
    parts: tl.tensor,
    tokens: tl.tensor,
    classes: tl.tensor,
    width: tl.tensor,
    PRECISION: tl.constexpr,
    FACTOR: tl.constexpr,
    TOKENS: tl.constexpr,
    CLASSES: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    x = load_rows(hidden, token, tokens, width, WIDTH, FACTOR)
    best = tl.full((TOKENS,), float("-inf"), tl.float32)
    total = tl.zeros((TOKENS,), tl.float32)
    step = tl.num_programs(1) * CLASSES
    # Tokens past those that are trained are no work.
    last = tl.where(tl.program_id(0) * TOKENS < tl.load(trained), classes, 0)
    for first in range(tl.program_id(1) * CLASSES, last, step):
        klass = first + tl.arange(0, CLASSES)
        w = load_rows(table, klass, classes, width, WIDTH, FACTOR)
        logits = scores_of(x, w, bias, klass, classes, PRECISION)
        higher = tl.maximum(best, tl.max(logits, 1))
        total = total * tl.exp2(best - higher) + tl.sum(tl.exp2(logits - higher[:, None]), 1)
        best = higher
    at = tl.program_id(1).to(tl.int64) * tokens + token
    tl.store(parts + at, (best + tl.log2(total)) / LOG2_E, token < tokens)


@triton.jit
def hidden_kernel(
    hidden: tl.tensor,
    table: tl.tensor,
    bias: tl.tensor,
    trained: tl.tensor,
    log_totals: tl.tensor,
    parts: tl.tensor,
    tokens: tl.tensor,
    classes: tl.tensor,
    width: tl.tensor,
    PRECISION: tl.constexpr,
    FACTOR: tl.constexpr,
    TOKENS: tl.constexpr,
    CLASSES: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    x = load_rows(hidden, token, tokens, width, WIDTH, FACTOR)
    shift = tl.load(log_totals + token, token < tokens, 0.0) * LOG2_E
    gradient = tl.zeros((TOKENS, WIDTH), tl.float32)
    step = tl.num_programs(1) * CLASSES
    # Tokens past those that are trained are no work.
    last = tl.where(tl.program_id(0) * TOKENS < tl.load(trained), classes, 0)
    for first in range(tl.program_id(1) * CLASSES, last, step):
        klass = first + tl.arange(0, CLASSES)
        w = load_rows(table, klass, classes, width, WIDTH, FACTOR)
        p = tl.exp2(scores_of(x, w, bias, klass, classes, PRECISION) - shift[:, None])
        gradient += tl.dot(p.to(FACTOR), w, input_precision=PRECISION)
    column = tl.arange(0, WIDTH)
    row = tl.program_id(1).to(tl.int64) * tokens + token
    inside = (token < tokens)[:, None] & (column < width)[None, :]
    tl.store(parts + row[:, None] * width + column[None, :], gradient, inside)


@triton.jit
def table_kernel(
    hidden: tl.tensor,
    table: tl.tensor,
    bias: tl.tensor,
    trained: tl.tensor,
    log_totals: tl.tensor,
    parts: tl.tensor,
    of_bias: tl.tensor,
    tokens: tl.tensor,
    classes: tl.tensor,
    width: tl.tensor,
    PRECISION: tl.constexpr,
    FACTOR: tl.constexpr,
    TOKENS: tl.constexpr,
    CLASSES: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    klass = tl.program_id(0) * CLASSES + tl.arange(0, CLASSES)
    w = load_rows(table, klass, classes, width, WIDTH, FACTOR)
    gradient = tl.zeros((CLASSES, WIDTH), tl.float32)
    times = tl.zeros((CLASSES,), tl.float32)
    step = tl.num_programs(1) * TOKENS
    last = tl.load(trained).to(tl.int32)
    for first in range(tl.program_id(1) * TOKENS, last, step):
        token = first + tl.arange(0, TOKENS)
        x = load_rows(hidden, token, last, width, WIDTH, FACTOR)
        # Past the last token the shift is so high that nothing is left.
        shift = tl.load(log_totals + token, token < last, float("inf")) * LOG2_E
        p = tl.exp2(scores_of(x, w, bias, klass, classes, PRECISION) - shift[:, None])
        gradient += tl.dot(tl.trans(p.to(FACTOR)), x, input_precision=PRECISION)
        times += tl.sum(p, 0)
    column = tl.arange(0, WIDTH)
    row = tl.program_id(1).to(tl.int64) * classes + klass
    inside = (klass < classes)[:, None] & (column < width)[None, :]
    tl.store(parts + row[:, None] * width + column[None, :], gradient, inside)
    tl.store(of_bias + row, times, klass < classes)
