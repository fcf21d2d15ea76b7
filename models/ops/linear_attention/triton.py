"""Causal linear attention through a Triton kernel.

A program walks a run of whole segments, some tokens (a chunk) at a time, for one head and a block
of the columns of v. Within a chunk it forms the scores, masked to "earlier in the same segment";
what came before the chunk is in S, carried in registers. A backward pass takes the tokens from
the other end, and nothing else differs. A value that is not finite shows in all of its chunk.
"""

import torch
import triton
import triton.language as tl

from models.ops import segments

BLOCK = 64  # columns, at most


def run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    reset: torch.Tensor,
    initial: torch.Tensor | None = None,
    last: torch.Tensor | None = None,
    backwards: bool = False,
) -> torch.Tensor:
    """One pass of the kernel."""
    o = torch.empty_like(v)
    if v.numel() == 0:
        return o
    bounds = segments.runs(reset)
    (_, heads, m), n = q.shape, v.shape[2]
    rows = max(16, triton.next_power_of_2(m))
    block = min(BLOCK, max(16, triton.next_power_of_2(n)))
    walk[len(bounds) - 1, heads, triton.cdiv(n, block)](
        q,
        k,
        v,
        segments.numbers(reset),
        bounds,
        initial,
        o,
        last,
        m,
        n,
        BACKWARDS=backwards,
        PRECISION=segments.product_precision(v.dtype),
        # Chosen by what the compiler reports: larger chunks or fewer warps spill registers.
        CHUNK=32 if rows <= 64 else 16,
        M=rows,
        BLOCK=block,
        num_warps=4 if rows <= 32 else 8,
        num_stages=2,
    )
    return o


@triton.jit
def walk(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    segment: tl.tensor,
    bounds: tl.tensor,
    initial: tl.tensor,
    o: tl.tensor,
    last: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    BACKWARDS: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    M: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    begin, end = tl.load(bounds + tl.program_id(0)), tl.load(bounds + tl.program_id(0) + 1)
    head, heads = tl.program_id(1), tl.num_programs(1)
    row = tl.arange(0, CHUNK)
    i = tl.arange(0, M)
    j = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    # S so far, and the segment it belongs to: at first the one from before token 0.
    cell = (head * m + i[:, None]) * n + j[None, :]
    exists = (i < m)[:, None] & (j < n)[None, :] & (tl.program_id(0) == 0)
    state = tl.zeros((M, BLOCK), tl.float32)
    owner = tl.zeros((), tl.int32)
    if initial is not None:
        state = tl.load(initial + cell, exists, 0.0)
    for step in range(0, end - begin, CHUNK):
        inside = row < end - begin - step
        token = end - 1 - step - row if BACKWARDS else begin + step + row
        own = tl.load(segment + token, inside, -1)
        narrow = (token * heads + head)[:, None] * m + i[None, :]
        of_m = inside[:, None] & (i < m)[None, :]
        query = tl.load(q + narrow, of_m, 0.0).to(tl.float32)
        key = tl.load(k + narrow, of_m, 0.0).to(tl.float32)
        wide = (token * heads + head)[:, None] * n + j[None, :]
        of_n = inside[:, None] & (j < n)[None, :]
        value = tl.load(v + wide, of_n, 0.0).to(tl.float32)

        reached = (own[:, None] == own[None, :]) & (row[:, None] >= row[None, :])
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        total = tl.dot(tl.where(reached, scores, 0.0), value, input_precision=PRECISION)
        query = tl.where((own == owner)[:, None], query, 0.0)
        total = tl.dot(query, state, total, input_precision=PRECISION)
        tl.store(o + wide, total, of_n)

        final = row == tl.minimum(CHUNK, end - begin - step) - 1
        newest = tl.sum(tl.where(final, own, 0), axis=0)
        key = tl.where((own == newest)[:, None], key, 0.0)
        state = tl.where(newest == owner, state, 0.0)
        state = tl.dot(tl.trans(key), value, state, input_precision=PRECISION)
        owner = newest
    if last is not None:
        tl.store(last + cell, state, exists & (owner == 0))
