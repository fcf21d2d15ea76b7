"""Attention in Triton, on the packed tokens as they are.

A program takes a block of consecutive tokens, of one head, and whatever segments they belong to:
short segments share a block, and none is filled up. Every token carries the range of the tokens it
sees, so that causal and two-way differ in two vectors and in nothing else. The softmax is taken
online: each block of keys corrects the sums made so far to the new largest score. The gradient
makes the weights again from the logarithm of each row's sum.
"""

from typing import Any

import torch
import triton
import triton.language as tl

BLOCK = 32  # tokens; of the widest heads, more would not fit into the registers


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, causal: bool
) -> torch.Tensor:
    """softmax(q kᵀ / sqrt(hd)) v within each segment, for fp32 or bf16."""
    seen, seers = ranges(offsets, len(q), causal)
    y: torch.Tensor = Attention.apply(q, k.to(q.dtype), v.to(q.dtype), seen, seers)
    return y


def ranges(offsets: torch.Tensor, tokens: int, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The range of tokens that each token sees, and of those that see it: ``[2, T]``, ends open."""
    lengths = offsets.diff()
    bounds = torch.stack((offsets[:-1], offsets[1:]))
    first, end = torch.repeat_interleave(bounds, lengths, dim=1, output_size=tokens)
    if not causal:
        both = torch.stack((first, end))
        return both, both
    token = torch.arange(tokens, device=offsets.device)
    return torch.stack((first, token + 1)), torch.stack((token, end))


class Attention(torch.autograd.Function):
    """Keeps the inputs, the result in fp32, and the logarithm of each row's sum, ``[T, H]``."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        seen: torch.Tensor,
        seers: torch.Tensor,
    ) -> torch.Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        y = torch.empty_like(q, dtype=torch.float32)
        log_sum = q.new_empty(q.shape[:2], dtype=torch.float32)
        grid, sizes = launch(q)
        forward_kernel[grid](q, k, v, seen, y, log_sum, **sizes)
        ctx.save_for_backward(q, k, v, y, log_sum, seen, seers)
        return y.to(q.dtype)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, y, log_sum, seen, seers = ctx.saved_tensors
        dy = dy.contiguous()
        # What is taken off a row's gradients to make those of its scores sum to zero. It nearly
        # cancels them where one weight is close to one, so it is not made from a rounded y.
        shift = (dy * y).sum(2)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        grid, sizes = launch(q)
        query_gradient_kernel[grid](q, k, v, seen, dy, log_sum, shift, dq, **sizes)
        key_gradient_kernel[grid](q, k, v, seen, seers, dy, log_sum, shift, dk, dv, **sizes)
        return dq, dk, dv, None, None


def launch(q: torch.Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid, and the arguments that all kernels share."""
    tokens, heads, width = q.shape
    padded = max(16, triton.next_power_of_2(width))
    sizes = {
        "tokens": tokens,
        "heads": heads,
        "width": width,
        "scale": width**-0.5,
        "BLOCK": BLOCK,
        "WIDTH": padded,
        # bf16 numbers are exact in tf32; fp32 numbers are not.
        "PRECISION": "tf32" if q.dtype == torch.bfloat16 else "ieee",
        "num_warps": 4 if padded <= 64 else 8,
        "num_stages": 1,
    }
    return (triton.cdiv(tokens, BLOCK), heads), sizes


@triton.jit
def forward_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    seen: tl.tensor,
    y: tl.tensor,
    log_sum: tl.tensor,
    tokens: tl.tensor,
    heads: tl.tensor,
    width: tl.tensor,
    scale: tl.tensor,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """y of one block of tokens."""
    head = tl.program_id(1)
    begin = tl.program_id(0).to(tl.int64) * BLOCK
    rows = begin + tl.arange(0, BLOCK)
    queries = load_rows(q, rows, head, tokens, heads, width, WIDTH)
    first, end = load_ranges(seen, rows, tokens)
    # Finite, because a row may see nothing of the first blocks: inf - inf is not a number.
    largest = tl.full((BLOCK,), -1e38, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    sums = tl.zeros((BLOCK, WIDTH), tl.float32)
    for start in range(tl.load(seen + begin), tl.max(end, 0), BLOCK):
        columns = start + tl.arange(0, BLOCK)
        keys = load_rows(k, columns, head, tokens, heads, width, WIDTH)
        values = load_rows(v, columns, head, tokens, heads, width, WIDTH)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        scores = tl.where(sees(first, end, columns), scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        correction = tl.exp(largest - larger)
        weights = tl.exp(scores - larger[:, None])
        total = total * correction + tl.sum(weights, 1)
        sums = sums * correction[:, None]
        sums += tl.dot(weights, values, input_precision=PRECISION)
        largest = larger
    total = tl.where(rows < tokens, total, 1.0)
    store_rows(y, sums / total[:, None], rows, head, tokens, heads, width, WIDTH)
    tl.store(log_sum + rows * heads + head, largest + tl.log(total), mask=rows < tokens)


@triton.jit
def query_gradient_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    seen: tl.tensor,
    dy: tl.tensor,
    log_sum: tl.tensor,
    shift: tl.tensor,
    dq: tl.tensor,
    tokens: tl.tensor,
    heads: tl.tensor,
    width: tl.tensor,
    scale: tl.tensor,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """dq of one block of tokens, over the keys they see."""
    head = tl.program_id(1)
    begin = tl.program_id(0).to(tl.int64) * BLOCK
    rows = begin + tl.arange(0, BLOCK)
    queries = load_rows(q, rows, head, tokens, heads, width, WIDTH)
    upstream = load_rows(dy, rows, head, tokens, heads, width, WIDTH)
    first, end = load_ranges(seen, rows, tokens)
    logs = tl.load(log_sum + rows * heads + head, mask=rows < tokens, other=0.0)
    shifts = tl.load(shift + rows * heads + head, mask=rows < tokens, other=0.0)
    gradient = tl.zeros((BLOCK, WIDTH), tl.float32)
    for start in range(tl.load(seen + begin), tl.max(end, 0), BLOCK):
        columns = start + tl.arange(0, BLOCK)
        keys = load_rows(k, columns, head, tokens, heads, width, WIDTH)
        values = load_rows(v, columns, head, tokens, heads, width, WIDTH)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        visible = sees(first, end, columns)
        weights = tl.exp(tl.where(visible, scores - logs[:, None], float("-inf")))
        dweights = tl.dot(upstream, tl.trans(values), input_precision=PRECISION)
        dscores = weights * (dweights - shifts[:, None])
        gradient += tl.dot(dscores, keys, input_precision=PRECISION)
    store_rows(dq, gradient * scale, rows, head, tokens, heads, width, WIDTH)


@triton.jit
def key_gradient_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    seen: tl.tensor,
    seers: tl.tensor,
    dy: tl.tensor,
    log_sum: tl.tensor,
    shift: tl.tensor,
    dk: tl.tensor,
    dv: tl.tensor,
    tokens: tl.tensor,
    heads: tl.tensor,
    width: tl.tensor,
    scale: tl.tensor,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """dk and dv of one block of tokens, over the queries that see them."""
    head = tl.program_id(1)
    begin = tl.program_id(0).to(tl.int64) * BLOCK
    columns = begin + tl.arange(0, BLOCK)
    keys = load_rows(k, columns, head, tokens, heads, width, WIDTH)
    values = load_rows(v, columns, head, tokens, heads, width, WIDTH)
    _, seers_end = load_ranges(seers, columns, tokens)
    key_gradient = tl.zeros((BLOCK, WIDTH), tl.float32)
    value_gradient = tl.zeros((BLOCK, WIDTH), tl.float32)
    for start in range(tl.load(seers + begin), tl.max(seers_end, 0), BLOCK):
        rows = start + tl.arange(0, BLOCK)
        queries = load_rows(q, rows, head, tokens, heads, width, WIDTH)
        upstream = load_rows(dy, rows, head, tokens, heads, width, WIDTH)
        first, end = load_ranges(seen, rows, tokens)
        logs = tl.load(log_sum + rows * heads + head, mask=rows < tokens, other=0.0)
        shifts = tl.load(shift + rows * heads + head, mask=rows < tokens, other=0.0)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        visible = sees(first, end, columns)
        weights = tl.exp(tl.where(visible, scores - logs[:, None], float("-inf")))
        value_gradient += tl.dot(tl.trans(weights), upstream, input_precision=PRECISION)
        dweights = tl.dot(upstream, tl.trans(values), input_precision=PRECISION)
        dscores = weights * (dweights - shifts[:, None])
        key_gradient += tl.dot(tl.trans(dscores), queries, input_precision=PRECISION)
    store_rows(dk, key_gradient * scale, columns, head, tokens, heads, width, WIDTH)
    store_rows(dv, value_gradient, columns, head, tokens, heads, width, WIDTH)


@triton.jit
def sees(first: tl.tensor, end: tl.tensor, columns: tl.tensor) -> tl.tensor:
    """Whether each row's range holds each column's token."""
    return (first[:, None] <= columns[None, :]) & (columns[None, :] < end[:, None])


@triton.jit
def load_ranges(
    ranges: tl.tensor, rows: tl.tensor, tokens: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """The ranges of these tokens; empty for rows past the last token."""
    first = tl.load(ranges + rows, mask=rows < tokens, other=0)
    end = tl.load(ranges + tokens + rows, mask=rows < tokens, other=0)
    return first, end


@triton.jit
def load_rows(
    x: tl.tensor,
    rows: tl.tensor,
    head: tl.tensor,
    tokens: tl.tensor,
    heads: tl.tensor,
    width: tl.tensor,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """These tokens of ``[T, H, hd]``, one head, in fp32; zeros past the last token and width."""
    lanes = tl.arange(0, WIDTH)
    at = (rows * heads + head)[:, None] * width + lanes[None, :]
    real = (rows < tokens)[:, None] & (lanes < width)[None, :]
    return tl.load(x + at, mask=real, other=0.0).to(tl.float32)


@triton.jit
def store_rows(
    x: tl.tensor,
    values: tl.tensor,
    rows: tl.tensor,
    head: tl.tensor,
    tokens: tl.tensor,
    heads: tl.tensor,
    width: tl.tensor,
    WIDTH: tl.constexpr,
) -> None:
    """The opposite of load_rows."""
    lanes = tl.arange(0, WIDTH)
    at = (rows * heads + head)[:, None] * width + lanes[None, :]
    real = (rows < tokens)[:, None] & (lanes < width)[None, :]
    tl.store(x + at, values, mask=real)
