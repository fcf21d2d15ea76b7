"""The running sum through a Triton kernel.

A program walks a run of whole segments, CHUNK tokens at a time, with a block of columns. Sums
within a chunk are a product with the 0/1 matrix of "earlier in the same segment"; the sum at a
chunk's end is carried in registers. A backward pass takes the tokens from the other end, and
nothing else differs. A value that is not finite shows in all of its chunk.
"""

import torch
import triton
import triton.language as tl

from models.ops import segments

CHUNK = 32  # tokens
BLOCK = 64  # columns, at most


def run(
    x: torch.Tensor,
    reset: torch.Tensor,
    initial: torch.Tensor | None = None,
    last: torch.Tensor | None = None,
    backwards: bool = False,
) -> torch.Tensor:
    """One pass of the kernel."""
    sums = torch.empty_like(x)
    if x.numel() == 0:
        return sums
    bounds = segments.runs(reset)
    width = x.shape[1]
    block = min(BLOCK, max(16, triton.next_power_of_2(width)))
    walk[len(bounds) - 1, triton.cdiv(width, block)](
        x,
        segments.numbers(reset),
        bounds,
        initial,
        sums,
        last,
        width,
        BACKWARDS=backwards,
        PRECISION=segments.product_precision(x.dtype),
        CHUNK=CHUNK,
        BLOCK=block,
    )
    return sums


@triton.jit
def walk(
    x: tl.tensor,
    segment: tl.tensor,
    bounds: tl.tensor,
    initial: tl.tensor,
    sums: tl.tensor,
    last: tl.tensor,
    width: tl.tensor,
    BACKWARDS: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    begin, end = tl.load(bounds + tl.program_id(0)), tl.load(bounds + tl.program_id(0) + 1)
    row = tl.arange(0, CHUNK)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = column < width
    # The sum so far, and the segment it belongs to: at first the one from before token 0.
    state = tl.zeros((BLOCK,), tl.float32)
    owner = tl.zeros((), tl.int32)
    if initial is not None:
        state = tl.load(initial + column, known & (tl.program_id(0) == 0), 0.0)
    for step in range(0, end - begin, CHUNK):
        inside = row < end - begin - step
        token = end - 1 - step - row if BACKWARDS else begin + step + row
        own = tl.load(segment + token, inside, -1)
        place = token[:, None] * width + column[None, :]
        mask = inside[:, None] & known[None, :]
        tile = tl.load(x + place, mask, 0.0).to(tl.float32)
        reached = (own[:, None] == own[None, :]) & (row[:, None] >= row[None, :])
        total = tl.dot(reached.to(tl.float32), tile, input_precision=PRECISION)
        total += tl.where((own == owner)[:, None], state[None, :], 0.0)
        tl.store(sums + place, total, mask)
        final = row == tl.minimum(CHUNK, end - begin - step) - 1
        state = tl.sum(tl.where(final[:, None], total, 0.0), axis=0)
        owner = tl.sum(tl.where(final, own, 0), axis=0)
    if last is not None:
        came_from_before = known & (owner == 0) & (tl.program_id(0) == 0)
        tl.store(last + column, state, came_from_before)
