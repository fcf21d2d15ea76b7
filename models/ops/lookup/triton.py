"""Sums of rows by number through Triton kernels, without an atomic addition.

The places are sorted, stably, so that the values of one lie next to each other: a run. A program
adds up the values of some neighbours (a chunk) in order. A run within one chunk is done then; of
one that goes on into other chunks each chunk notes its part, and a second kernel adds these up. So
a place that has most of the values costs a walk over chunks, not over values, and no place's sum
depends on when a program ran. Shapes follow from shapes: nothing waits for the GPU.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

CHUNK = 32  # values
BLOCK = 64  # columns, at most
AHEAD = tl.constexpr(4)  # values whose loads are started early


class Sorted(NamedTuple):
    """Places in order, where they were, and where the run ends that each chunk ends in."""

    places: torch.Tensor
    before: torch.Tensor
    ends: torch.Tensor


def sort(places: torch.Tensor) -> Sorted:
    """int64 places ``[n]`` as ``add_rows_`` wants them."""
    ordered, before = places.int().sort(stable=True)
    last = torch.arange(1, triton.cdiv(len(places), CHUNK) + 1, device=places.device) * CHUNK - 1
    ends = torch.searchsorted(ordered, ordered[last.clamp(max=len(places) - 1)], right=True)
    return Sorted(ordered, before, ends)


def row_sums(values: torch.Tensor, places: torch.Tensor, rows: int) -> torch.Tensor:
    """The sum of the values of each place."""
    total = values.new_zeros(rows, values.shape[1], dtype=torch.float32)
    if values.numel():
        add_rows_(total, sort(places), values.contiguous())
    return total


def add_rows_(
    total: torch.Tensor, order: Sorted, values: torch.Tensor, factors: torch.Tensor | None = None
) -> None:
    """Add contiguous values ``[n, w]``, n > 0, times factors (fp32 ``[n]``), to fp32 rows."""
    count, width = values.shape
    chunks = triton.cdiv(count, CHUNK)
    # What a chunk's first run, begun earlier, and its last one, not ended, add up to within it.
    first, last = values.new_empty(2, chunks, width, dtype=torch.float32)
    block = min(BLOCK, max(16, triton.next_power_of_2(width)))
    grid = (chunks, triton.cdiv(width, block))
    sizes = {"CHUNK": CHUNK, "BLOCK": block, "num_warps": 1}
    tensors = (values, factors, order.places, order.before, total, first, last)
    chunk_kernel[grid](*tensors, count, width, **sizes)
    join_kernel[grid](order.places, order.ends, total, first, last, count, width, **sizes)


@triton.jit
def chunk_kernel(
    values: tl.tensor,
    factors: tl.tensor,
    places: tl.tensor,
    before: tl.tensor,
    total: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    count: tl.tensor,
    width: tl.tensor,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    begin = tl.program_id(0) * CHUNK
    end = tl.minimum(begin + CHUNK, count)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = column < width
    note = tl.program_id(0).to(tl.int64) * width + column
    earlier = tl.load(places + begin - 1, begin > 0, -2)
    begun_earlier = earlier == tl.load(places + begin)
    state = tl.zeros((BLOCK,), tl.float32)
    for at in tl.range(begin, end, num_stages=AHEAD):
        place = tl.load(places + at).to(tl.int64)
        following = tl.load(places + at + 1, at + 1 < count, -2)
        source = tl.load(before + at)
        value = tl.load(values + source * width + column, known, 0.0).to(tl.float32)
        if factors is not None:
            value *= tl.load(factors + source)
        state += value
        ends = following != place
        done = ends & (begun_earlier == 0) & (place >= 0)
        row = total + place * width + column
        tl.store(row, tl.load(row, known & done, 0.0) + state, known & done)
        tl.store(first + note, state, known & begun_earlier & (ends | (at == end - 1)))
        tl.store(last + note, state, known & (begun_earlier == 0) & (at == end - 1))
        state = tl.where(ends, 0.0, state)
        begun_earlier = begun_earlier & (ends == 0)


@triton.jit
def join_kernel(
    places: tl.tensor,
    ends: tl.tensor,
    total: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    count: tl.tensor,
    width: tl.tensor,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Finish the run that begins in this chunk and goes on into later ones, if there is one."""
    chunk = tl.program_id(0)
    begin = chunk * CHUNK
    end = tl.minimum(begin + CHUNK, count)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = column < width
    place = tl.load(places + end - 1).to(tl.int64)
    stop = tl.load(ends + chunk)
    begins_here = tl.load(places + begin - 1, begin > 0, -2) != place
    goes_on = begins_here & (stop > end) & (place >= 0)
    mine = known & goes_on
    state = tl.load(last + chunk.to(tl.int64) * width + column, mine, 0.0)
    after = tl.where(goes_on, tl.cdiv(stop, CHUNK), 0)
    for other in tl.range(chunk + 1, after, num_stages=AHEAD):
        state += tl.load(first + (other * width + column), mine, 0.0)
    row = total + place * width + column
    tl.store(row, tl.load(row, mine, 0.0) + state, mine)
