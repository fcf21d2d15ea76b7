"""Sums over segments by torch.segment_reduce: deterministic on every device, as index_add is not.

A sum and a spread are each other's gradient.
"""

from typing import Any

import torch


def segment_sum(x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """``[T, ...]`` -> ``[S, ...]``."""
    total: torch.Tensor = SegmentSum.apply(x, offsets)
    return total


def spread(values: torch.Tensor, offsets: torch.Tensor, tokens: int) -> torch.Tensor:
    """``[S, ...]`` -> ``[T, ...]``."""
    rows: torch.Tensor = Spread.apply(values, offsets, tokens)
    return rows


def segment_softmax(scores: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """``[T, c]`` -> ``[T, c]``."""
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    # The largest of a segment is a constant here: the softmax does not change with it.
    largest = reduce_segments(wide.detach(), offsets, "max")
    weights = (wide - repeat(largest, offsets, len(wide))).exp()
    totals = spread(segment_sum(weights, offsets), offsets, len(wide))
    return (weights / totals).to(scores.dtype)


class SegmentSum(torch.autograd.Function):
    """Sums tokens; each token's gradient is that of its segment."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(offsets)
        ctx.tokens = len(x)
        return reduce_segments(x, offsets, "sum")

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (offsets,) = ctx.saved_tensors
        return repeat(gradient, offsets, ctx.tokens), None


class Spread(torch.autograd.Function):
    """Repeats rows; the gradient of a row is the sum of its tokens'."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, offsets: torch.Tensor, tokens: int) -> torch.Tensor:
        ctx.save_for_backward(offsets)
        return repeat(values, offsets, tokens)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (offsets,) = ctx.saved_tensors
        return reduce_segments(gradient, offsets, "sum"), None, None


def reduce_segments(x: torch.Tensor, offsets: torch.Tensor, reduction: str) -> torch.Tensor:
    """``[T, ...]`` -> ``[S, ...]`` in the dtype of x, computed in fp32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    # "unsafe" leaves out checks of the offsets, which are checked already.
    reduced = torch.segment_reduce(wide, reduction, offsets=offsets, axis=0, unsafe=True)
    return reduced.to(x.dtype)


def repeat(values: torch.Tensor, offsets: torch.Tensor, tokens: int) -> torch.Tensor:
    """``[S, ...]`` -> ``[T, ...]``."""
    return torch.repeat_interleave(values, offsets.diff(), dim=0, output_size=tokens)
