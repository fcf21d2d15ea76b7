"""Attention by buckets of segments of nearly one length, through torch's dense kernel.

A row is filled up at its end, by repeating the segment's last token. A causal mask keeps the
filling out of every real token; looking both ways, a mask of the keys does. So the gradient of
the filling is zero. Used where neither the C++ kernel nor the Triton one serves.
"""

from typing import Any

import torch
from torch.nn import functional

from models.ops import precision


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, causal: bool
) -> torch.Tensor:
    """softmax(q kᵀ / sqrt(hd)) v within each segment, for at least one token."""
    dtype = torch.float32 if precision.emulated(q.dtype, q.device) else q.dtype
    shapes, take, place = rectangles(offsets)
    sizes = [rows * length for rows, length in shapes]
    padded = [Spread.apply(x.to(dtype), take, place).split(sizes) for x in (q, k, v)]
    real = torch.zeros(sum(sizes), dtype=torch.bool, device=q.device)
    real[place] = True
    outputs = []
    with torch.autocast(q.device.type, enabled=False):
        for (rows, length), seen, *operands in zip(shapes, real.split(sizes), *padded, strict=True):
            queries, keys, values = (
                x.view(rows, length, *x.shape[1:]).transpose(1, 2) for x in operands
            )
            mask = None if causal else seen.view(rows, 1, 1, length)
            y = functional.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, is_causal=causal
            )
            outputs.append(y.transpose(1, 2).reshape(rows * length, *q.shape[1:]))
    gathered: torch.Tensor = Gather.apply(torch.cat(outputs), place)
    return gathered.to(q.dtype)


def rectangles(
    offsets: torch.Tensor,
) -> tuple[list[tuple[int, int]], torch.Tensor, torch.Tensor]:
    """The buckets' (rows, length), the token of each of their slots, the slot of each token."""
    lengths = offsets.diff()
    kept = lengths > 0
    starts, lengths = offsets[:-1][kept], lengths[kept]
    padded = bucket_length(lengths)
    shapes, takes = [], []
    place = torch.empty(int(lengths.sum()), dtype=torch.int64, device=offsets.device)
    filled = 0
    for length in padded.unique().tolist():
        chosen = padded == length
        position = torch.arange(length, device=offsets.device)
        last = (lengths[chosen] - 1)[:, None]
        take = (starts[chosen][:, None] + torch.minimum(position, last)).flatten()
        real = (position <= last).flatten()
        place[take[real]] = filled + real.nonzero().squeeze(1)
        shapes.append((len(last), length))
        takes.append(take)
        filled += len(take)
    return shapes, torch.cat(takes), place


def bucket_length(lengths: torch.Tensor) -> torch.Tensor:
    """Rounds up to multiples of an eighth of the next power of two, at least to 1, 2, 4 or 8s."""
    power = 2 ** torch.ceil(torch.log2(lengths.double())).long()
    step = torch.clamp(power // 8, min=8).minimum(power)
    return (lengths + step - 1) // step * step


class Spread(torch.autograd.Function):
    """Tokens to slots; a token's gradient is that of its own slot, as filling has none."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, take: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(place)
        return x.index_select(0, take)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (place,) = ctx.saved_tensors
        return gradient.index_select(0, place), None, None


class Gather(torch.autograd.Function):
    """Slots back to tokens."""

    @staticmethod
    def forward(ctx: Any, padded: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(place)
        ctx.slots = len(padded)
        return padded.index_select(0, place)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (place,) = ctx.saved_tensors
        padded = gradient.new_zeros(ctx.slots, *gradient.shape[1:])
        return padded.index_copy_(0, place, gradient), None
