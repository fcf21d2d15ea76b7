"""The recurrence in eager torch, one step a position for all segments at once.

Tokens are put in time-major order: position 0 of every segment, then position 1 of those that
have one, and so on, longest segment first, so that the segments alive at a position are always
the first rows of those alive at the position before. The cost is one small complex operation a
position of the longest segment, without padding.
"""

from itertools import pairwise
from typing import Any

import torch

from models.ops.recurrence.reference import empty


def recurrence(
    u: torch.Tensor, decay: torch.Tensor, reset: torch.Tensor, initial: torch.Tensor | None
) -> torch.Tensor:
    """h like u, the state complex in fp32 or wider."""
    wide = torch.promote_types(u.dtype, torch.float32)
    if len(u) == 0:
        return empty(u, decay, initial)
    # What flows into the first token is part of its input.
    pairs = torch.complex(*u.to(wide).chunk(2, dim=1))
    factor = torch.complex(*decay.to(wide))
    if initial is not None:
        entering = factor * torch.complex(*initial.to(wide).chunk(2))
        entering = torch.where(reset[0], torch.zeros_like(entering), entering)
        pairs = torch.cat((pairs[:1] + entering, pairs[1:]))
    order, counts = time_major(reset)
    states: torch.Tensor = TimeMajorRecurrence.apply(pairs[order], factor, counts)
    h = states[torch.argsort(order)]
    return torch.cat((h.real, h.imag), dim=1).to(u.dtype)


def time_major(reset: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """The tokens' time-major order, and how many segments have each position."""
    tokens = torch.arange(len(reset), device=reset.device)
    first = reset.clone()
    first[0] = True
    segment = first.cumsum(0) - 1
    starts = tokens[first]
    lengths = torch.bincount(segment)
    rank = torch.argsort(torch.argsort(lengths, descending=True, stable=True))
    position = tokens - starts[segment]
    order = torch.argsort(position * len(starts) + rank[segment])
    return order, torch.bincount(position).tolist()


class TimeMajorRecurrence(torch.autograd.Function):
    """h of one position from h of the position before, both directions written out."""

    @staticmethod
    def forward(ctx: Any, u: torch.Tensor, factor: torch.Tensor, counts: list[int]) -> torch.Tensor:
        h = u.clone()
        rows = h.split(counts)
        for before, now in pairwise(rows):
            now.addcmul_(before[: len(now)], factor)
        ctx.save_for_backward(h, factor)
        ctx.counts = counts
        return h

    @staticmethod
    def backward(ctx: Any, dh: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        h, factor = ctx.saved_tensors
        g = dh.clone()
        conjugate = factor.conj()
        rows, states = g.split(ctx.counts), h.split(ctx.counts)
        dfactor = torch.zeros_like(factor)
        for before, now, state in reversed(list(zip(rows, rows[1:], states, strict=False))):
            before[: len(now)].addcmul_(now, conjugate)
            dfactor += (now * state[: len(now)].conj()).sum(0)
        return g, dfactor, None
