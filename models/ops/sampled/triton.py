"""The sampled losses through Triton kernels: logits stay in registers.

One walk over a block's negatives, for a tile of its tokens, makes the losses and the gradient of
hidden together: the sums of the softmax are taken online, each tile of negatives correcting them to
the new largest score. A second walk, over the tokens for a tile of negatives, makes the logits
again for the gradient of the negatives. That is 10 d operations a pair instead of 6 d. Sums by row
are those of lookup: no atomic addition, no wait for the GPU.

Products take the inputs as they are, bf16 under autocast, and sum in fp32.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from models.ops import gpu, precision, segments
from models.ops.lookup import triton as lookup

PROGRAMS = 512  # at least, where there is work for so many: a few for each processor
LOG2_E = tl.constexpr(1.4426950408889634)


class Kind(NamedTuple):
    """Which loss. scale: None for the softmax, else what the binary loss is multiplied by."""

    block_tokens: int
    positive: float = 1.0
    scale: float | None = None


def softmax(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    log_weights: torch.Tensor,
    block_tokens: int,
) -> torch.Tensor:
    """See ``sampled_softmax_loss``."""
    return loss(hidden, rows, bias, targets, negatives, log_weights.float(), Kind(block_tokens))


def binary(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    positive: float,
    block_tokens: int,
) -> torch.Tensor:
    """See ``sampled_binary_loss``."""
    kind = Kind(block_tokens, positive, 1 / (negatives.shape[1] + 1))
    return loss(hidden, rows, bias, targets, negatives, None, kind)


def loss(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    log_weights: torch.Tensor | None,
    kind: Kind,
) -> torch.Tensor:
    """The fp32 sum of the losses."""
    dtype = precision.factors(hidden, rows)
    leaves = [tensor for tensor in (hidden, rows, bias) if tensor is not None]
    train = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in leaves)
    wide_bias = None if bias is None else bias.float()
    inputs = hidden.to(dtype), rows.to(dtype), wide_bias, targets, negatives, log_weights
    total: torch.Tensor = Loss.apply(*inputs, kind, train)
    return total


class Loss(torch.autograd.Function):
    """Makes the gradients with the loss, where training, and keeps only them, in fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        rows: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        negatives: torch.Tensor,
        log_weights: torch.Tensor | None,
        kind: Kind,
        train: bool,
    ) -> torch.Tensor:
        hidden, rows, targets = hidden.contiguous(), rows.contiguous(), targets.contiguous()
        ctx.dtype = hidden.dtype
        kind = kind._replace(block_tokens=min(kind.block_tokens, max(1, len(hidden))))
        blocks = triton.cdiv(len(hidden), kind.block_tokens)  # there may be more, for no token
        negatives = negatives[:blocks].contiguous()
        added = rows.new_zeros(len(rows), dtype=torch.float32) if bias is None else bias
        shift = added[negatives]
        shift = shift if log_weights is None else shift + log_weights[:blocks]
        chosen = rows[negatives]  # [B, n, d]
        walk = partial(launch, hidden, targets, negatives, chosen, shift.contiguous(), kind)
        losses, sums, pull = hidden.new_empty(3, len(hidden), dtype=torch.float32)
        dhidden = torch.empty_like(hidden, dtype=torch.float32) if train else None
        if len(hidden):
            walk(token_kernel, rows, added.contiguous(), losses, sums, pull, dhidden)
        if train:
            drows = torch.zeros_like(rows, dtype=torch.float32)
            dbias = torch.zeros_like(added)
            if len(hidden):
                shared, times = walk(negative_kernel, sums)
                own, drawn = lookup.sort(targets), lookup.sort(negatives.flatten())
                for sums_of, of_own, of_drawn in (
                    (drows, hidden, shared),
                    (dbias[:, None], torch.ones_like(pull)[:, None], times[:, None]),
                ):
                    lookup.add_rows_(sums_of, own, of_own, pull)
                    lookup.add_rows_(sums_of, drawn, of_drawn)
            ctx.save_for_backward(dhidden, drows, dbias)
        total: torch.Tensor = losses.double().sum().float()
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dtypes = (ctx.dtype, ctx.dtype, torch.float32)
        made = zip(ctx.saved_tensors, dtypes, ctx.needs_input_grad[:3], strict=True)
        scaled = ((g * scale).to(dtype) if needed else None for g, dtype, needed in made)
        return *scaled, None, None, None, None, None


def launch(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    chosen: torch.Tensor,
    shift: torch.Tensor,
    kind: Kind,
    kernel: Any,
    *rest: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """One of the two walks; the second returns ``[B * n, d]`` and ``[B * n]``."""
    narrow = hidden.dtype == torch.bfloat16
    width = max(16, triton.next_power_of_2(hidden.shape[1]))
    blocks, count = negatives.shape
    # Chosen by what the compiler reports for an H100: larger tiles or fewer warps spill.
    kept, drawn = (64, 64) if narrow and width <= 128 else (32, 32)
    sizes = {
        "tokens": len(hidden),
        "count": count,
        "width": hidden.shape[1],
        "block_tokens": kind.block_tokens,
        "scale": 1.0 if kind.scale is None else kind.scale,
        "positive": kind.positive,
        "BINARY": kind.scale is not None,
        "PRECISION": segments.product_precision(hidden.dtype),
        # Triton's interpreter multiplies no bf16.
        "FACTOR": tl.bfloat16 if narrow and not gpu.interpreting else tl.float32,
        "TOKENS": kept,
        "DRAWN": drawn,
        "WIDTH": width,
        "num_warps": 4 if width < 64 else 8,
        "num_stages": 2,
    }
    inputs = (hidden, targets, negatives, chosen, shift)
    tiles = triton.cdiv(kind.block_tokens, kept)
    if kernel is token_kernel:
        kernel[blocks, tiles](*inputs, *rest, **sizes)
        return ()
    beside = triton.cdiv(count, drawn)
    shares = max(1, min(tiles, triton.cdiv(PROGRAMS, blocks * beside)))
    parts = hidden.new_empty(shares, blocks * count, hidden.shape[1], dtype=torch.float32)
    times = hidden.new_empty(shares, blocks * count, dtype=torch.float32)
    kernel[blocks * beside, shares](*inputs, *rest, parts, times, **sizes)
    return parts.sum(0), times.sum(0)


@triton.jit
def load_rows(
    base: tl.tensor,
    row: tl.tensor,
    exists: tl.tensor,
    width: tl.tensor,
    WIDTH: tl.constexpr,
    FACTOR: tl.constexpr,
) -> tl.tensor:
    """Rows of a matrix, zeros where there are none."""
    column = tl.arange(0, WIDTH)
    at = row.to(tl.int64)[:, None] * width + column[None, :]
    return tl.load(base + at, exists[:, None] & (column < width)[None, :], 0.0).to(FACTOR)


@triton.jit
def logits_of(
    x: tl.tensor,
    target: tl.tensor,
    negatives: tl.tensor,
    shift: tl.tensor,
    w: tl.tensor,
    at: tl.tensor,
    exists: tl.tensor,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """Scores of tokens by negatives, minus infinity for a token's own target and past the last."""
    added = tl.load(shift + at, exists, float("-inf"))
    drawn = tl.load(negatives + at, exists, -2)
    logits = tl.dot(x, tl.trans(w), input_precision=PRECISION) + added[None, :]
    return tl.where(drawn[None, :] == target[:, None], float("-inf"), logits)


@triton.jit
def softplus(x: tl.tensor) -> tl.tensor:
    """log(1 + exp x)."""
    small = tl.exp(-tl.abs(x))
    return tl.maximum(x, 0.0) + tl.where(small < 1e-4, small, tl.log(1 + small))


@triton.jit
def token_kernel(
    hidden: tl.tensor,
    targets: tl.tensor,
    negatives: tl.tensor,
    chosen: tl.tensor,
    shift: tl.tensor,
    rows: tl.tensor,
    bias: tl.tensor,
    losses: tl.tensor,
    sums: tl.tensor,
    pull: tl.tensor,
    dhidden: tl.tensor,
    tokens: tl.tensor,
    count: tl.tensor,
    width: tl.tensor,
    block_tokens: tl.tensor,
    scale: tl.tensor,
    positive: tl.tensor,
    BINARY: tl.constexpr,
    PRECISION: tl.constexpr,
    FACTOR: tl.constexpr,
    TOKENS: tl.constexpr,
    DRAWN: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Losses, and the gradients of hidden and of the own scores; sums: log-sum-exps, base 2."""
    block = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    token = block * block_tokens + place
    here = (place < block_tokens) & (token < tokens)
    target = tl.load(targets + token, here, -1)
    trained = target >= 0
    x = load_rows(hidden, token, here, width, WIDTH, FACTOR)
    of_own = load_rows(rows, target, trained, width, WIDTH, tl.float32)
    own = tl.sum(x.to(tl.float32) * of_own, 1) + tl.load(bias + target, trained, 0.0)
    best = own
    others = tl.zeros((TOKENS,), tl.float32)
    gradient = tl.zeros((TOKENS, WIDTH), tl.float32)
    for first in range(0, count, DRAWN):
        number = first + tl.arange(0, DRAWN)
        exists = number < count
        at = block * count + number
        w = load_rows(chosen, at, exists, width, WIDTH, FACTOR)
        logits = logits_of(x, target, negatives, shift, w, at, exists, PRECISION)
        if BINARY:
            p = 1 / (1 + tl.exp(-logits))
            others += tl.sum(softplus(logits), 1)
        else:
            higher = tl.maximum(best, tl.max(logits, 1))
            p = tl.exp2((logits - higher[:, None]) * LOG2_E)
            less = tl.exp2((best - higher) * LOG2_E)
            others = others * less + tl.sum(p, 1)
            gradient *= less[:, None]
            best = higher
        gradient += tl.dot(p.to(FACTOR), w, input_precision=PRECISION)
    if BINARY:
        lost = scale * (positive * softplus(-own) + others)
        times = scale
        pulled = scale * positive / (1 + tl.exp(own))
    else:
        total = others + tl.exp2((own - best) * LOG2_E)
        lost = best - own + tl.log(total)
        times = 1 / total
        pulled = others / total
        # Past every score where there is no target: nothing is left of exp2(score - sum).
        whole = best * LOG2_E + tl.log2(total)
        tl.store(sums + token, tl.where(trained, whole, float("inf")), here)
    tl.store(losses + token, tl.where(trained, lost, 0.0), here)
    tl.store(pull + token, tl.where(trained, -pulled, 0.0), here)
    if dhidden is not None:
        if BINARY:
            gradient *= times
        else:
            gradient *= times[:, None]
        gradient = tl.where(trained[:, None], gradient - pulled[:, None] * of_own, 0.0)
        column = tl.arange(0, WIDTH)
        inside = here[:, None] & (column < width)[None, :]
        tl.store(dhidden + token[:, None] * width + column[None, :], gradient, inside)


@triton.jit
def negative_kernel(
    hidden: tl.tensor,
    targets: tl.tensor,
    negatives: tl.tensor,
    chosen: tl.tensor,
    shift: tl.tensor,
    sums: tl.tensor,
    parts: tl.tensor,
    times: tl.tensor,
    tokens: tl.tensor,
    count: tl.tensor,
    width: tl.tensor,
    block_tokens: tl.tensor,
    scale: tl.tensor,
    positive: tl.tensor,
    BINARY: tl.constexpr,
    PRECISION: tl.constexpr,
    FACTOR: tl.constexpr,
    TOKENS: tl.constexpr,
    DRAWN: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """What a share of a block's tokens adds to the gradients of some negatives."""
    beside = tl.cdiv(count, DRAWN)
    block = (tl.program_id(0) // beside).to(tl.int64)
    number = tl.program_id(0) % beside * DRAWN + tl.arange(0, DRAWN)
    exists = number < count
    at = block * count + number
    w = load_rows(chosen, at, exists, width, WIDTH, FACTOR)
    gradient = tl.zeros((DRAWN, WIDTH), tl.float32)
    weight = tl.zeros((DRAWN,), tl.float32)
    step = tl.num_programs(1) * TOKENS
    for first in range(tl.program_id(1) * TOKENS, block_tokens, step):
        place = first + tl.arange(0, TOKENS)
        token = block * block_tokens + place
        here = (place < block_tokens) & (token < tokens)
        target = tl.load(targets + token, here, -1)
        x = load_rows(hidden, token, here, width, WIDTH, FACTOR)
        logits = logits_of(x, target, negatives, shift, w, at, exists, PRECISION)
        if BINARY:
            p = tl.where((target >= 0)[:, None], scale / (1 + tl.exp(-logits)), 0.0)
        else:
            whole = tl.load(sums + token, here, float("inf"))
            p = tl.exp2(logits * LOG2_E - whole[:, None])
        gradient += tl.dot(tl.trans(p.to(FACTOR)), x, input_precision=PRECISION)
        weight += tl.sum(p, 0)
    column = tl.arange(0, WIDTH)
    row = tl.program_id(1).to(tl.int64) * (tl.num_programs(0) // beside) * count + at
    inside = exists[:, None] & (column < width)[None, :]
    tl.store(parts + row[:, None] * width + column[None, :], gradient, inside)
    tl.store(times + row, weight, exists)
