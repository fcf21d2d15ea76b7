"""Causal linear attention in eager torch, by chunks of the packed tokens.

Within a chunk the scores are formed and masked to earlier tokens of the same segment. From before
the chunk comes S, which belongs to the segment of the token before it. S after every chunk is a
running sum over chunks that starts anew where a chunk holds a segment's start.
"""

import torch
from torch.nn import functional

from models.ops import segments
from models.ops.linear_attention.reference import empty
from models.ops.prefix_sum import eager as running

CHUNK = 64  # tokens


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    reset: torch.Tensor,
    initial: torch.Tensor | None,
) -> torch.Tensor:
    """o in the dtype of v, computed in fp32 or wider."""
    if len(q) == 0:
        return empty(q, k, v, initial)
    wide = torch.promote_types(v.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        o = chunked(
            in_chunks(q.to(wide)).transpose(1, 2),
            in_chunks(k.to(wide)).transpose(1, 2),
            in_chunks(v.to(wide)).transpose(1, 2),
            in_chunks(reset),
            None if initial is None else initial.to(wide),
        )
    return o.transpose(1, 2).flatten(0, 1)[: len(q)].to(v.dtype)


def in_chunks(x: torch.Tensor) -> torch.Tensor:
    """``[T, ...]`` as ``[C, CHUNK, ...]``, filled up with zeros at its end."""
    missing = -len(x) % CHUNK
    padded = functional.pad(x, (0, 0) * (x.dim() - 1) + (0, missing))
    return padded.view(-1, CHUNK, *x.shape[1:])


def chunked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    reset: torch.Tensor,
    initial: torch.Tensor | None,
) -> torch.Tensor:
    """o ``[C, H, CHUNK, n]`` of q, k ``[C, H, CHUNK, m]``, v like o, and reset ``[C, CHUNK]``."""
    segment = segments.numbers(reset.flatten()).view(-1, 1, CHUNK)
    same = segment[..., :, None] == segment[..., None, :]
    o = (q @ k.mT).masked_fill(~same.tril(), 0.0) @ v

    # What a chunk adds to S is of its last segment; what was in S before stays if that is all.
    ends_with = segment[..., -1:]
    added = torch.where((segment == ends_with)[..., None], k, 0.0).mT @ v
    first = None if initial is None else initial.flatten()
    after = running.prefix_sum(added.flatten(1), reset.any(1), first).view_as(added)
    before_all = torch.zeros_like(added[:1]) if initial is None else initial[None]
    before = torch.cat((before_all, after[:-1]))

    came_in = functional.pad(ends_with[:-1], (0, 0, 0, 0, 1, 0))
    return o + torch.where((segment == came_in)[..., None], q, 0.0) @ before
