"""The experts in eager torch, one step a position for all segments at once.

Tokens are in time-major order (models/ops/recurrence/eager.py), so that the segments alive at a
position are the first rows of the state. One state a segment is held, none a token: the backward
pass walks forward once more to find what each token read, and then backward.

The log-normaliser is kept as z = highest + log(total), the highest score so far and a sum
relative to it: near 1e4 an fp32 z has no digits left for what one more token adds.
"""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch

from models.ops.experts.reference import State
from models.ops.recurrence.eager import time_major


def experts(
    scores: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    reset: torch.Tensor,
    state: State,
) -> torch.Tensor:
    """What each token reads, in the dtype of q; computed in the dtype of the state."""
    order, counts = time_major(reset)
    place = torch.argsort(order)
    z, keys, values = state
    rows = [x.to(z.dtype)[order] for x in (scores, q, k, v)]
    rows[1] = rows[1] / q.shape[-1] ** 0.5
    nothing = keys.new_zeros(counts[0], *keys.shape)
    first = place[:1]  # the row of the segment of token 0: the others begin with nothing
    before = (
        torch.full_like(nothing[..., 0], float("-inf")).index_copy(0, first, z[None]),
        nothing.index_copy(0, first, keys[None]),
        nothing.index_copy(0, first, values[None]),
    )
    read: torch.Tensor = TimeMajorExperts.apply(*rows, *before, counts)
    return read[place].to(q.dtype)


class TimeMajorExperts(torch.autograd.Function):
    """What each row reads: scores ``[T, H, K]``; q, divided by sqrt(e), k and v ``[T, H, e]``;
    z ``[S, H, K]``, K and V ``[S, H, K, e]`` of the S segments before their first tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        z: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        counts: list[int],
    ) -> torch.Tensor:
        ctx.save_for_backward(scores, q, k, v, z, keys, values)
        ctx.counts = counts
        read = torch.empty_like(q)
        for at, keys_now, values_now, _, _ in walk(scores, k, v, z, keys, values, counts):
            weights = over_width(keys_now, q[at]).softmax(-1)
            read[at] = over_experts(weights, values_now)
        return read

    @staticmethod
    def backward(ctx: Any, dread: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scores, q, k, v, z, keys, values = ctx.saved_tensors
        dq = torch.empty_like(q)
        steps = []
        for at, keys_now, values_now, kept, taken in walk(
            scores, k, v, z, keys, values, ctx.counts
        ):
            logits = over_width(keys_now, q[at])
            weights = logits.softmax(-1)
            dweights = over_width(values_now, dread[at])
            dlogits = weights * (dweights - (weights * dweights).sum(-1, keepdim=True))
            dq[at] = over_experts(dlogits, keys_now)
            pull = dlogits * logits + weights * dweights
            steps.append((at, weights, dlogits, pull, kept, taken))

        # What the tokens from here on ask of K and V, and of both along themselves (`total`):
        # each is weighted by the share that this moment's state has in theirs.
        dkeys, dvalues = torch.zeros_like(keys), torch.zeros_like(values)
        total = torch.zeros_like(z)
        dscores, dk, dv = torch.empty_like(scores), torch.empty_like(k), torch.empty_like(v)
        for at, weights, dlogits, pull, kept, taken in reversed(steps):
            alive = slice(len(pull))
            of_keys, of_values, of_both = dkeys[alive], dvalues[alive], total[alive]
            of_keys += dlogits[..., None] * q[at][:, :, None]
            of_values += weights[..., None] * dread[at][:, :, None]
            of_both += pull
            dk[at] = over_experts(taken, of_keys)
            dv[at] = over_experts(taken, of_values)
            along = over_width(of_keys, k[at]) + over_width(of_values, v[at])
            dscores[at] = taken * (along - of_both)
            of_keys *= kept[..., None]
            of_values *= kept[..., None]
            of_both *= kept
        dz = (dkeys * keys).sum(-1) + (dvalues * values).sum(-1) - total
        return dscores, dq, dk, dv, dz, dkeys, dvalues, None


def walk(
    scores: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    z: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    counts: list[int],
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """For each position: its rows, K and V after them (to be read before the next position),
    and the shares of the state before and of the row in them."""
    keys, values = keys.clone(), values.clone()
    highest, total = z, torch.ones_like(z)
    for end, count in zip(accumulate(counts), counts, strict=True):
        at = slice(end - count, end)
        before, score = highest[:count], scores[at]
        highest = torch.maximum(before, score)
        old = total[:count] * torch.exp(before - highest)
        new = torch.exp(score - highest)
        total = old + new
        taken = new / total
        keys = keys[:count].lerp_(k[at][:, :, None], taken[..., None])
        values = values[:count].lerp_(v[at][:, :, None], taken[..., None])
        yield at, keys, values, old / total, taken


def over_width(rows: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """Products ``[n, H, K]`` of the experts' rows ``[n, H, K, e]`` with one row ``[n, H, e]``."""
    return (rows * row[:, :, None]).sum(-1)


def over_experts(weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The experts' rows ``[n, H, K, e]`` summed with weights ``[n, H, K]``: ``[n, H, e]``."""
    return (weights[..., None] * rows).sum(2)
