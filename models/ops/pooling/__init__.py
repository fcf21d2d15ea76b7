"""Sums over whole segments of a packed batch, for models that look both ways."""

import torch

from models.ops.offsets import check_offsets
from models.ops.pooling import eager


def segment_sum(x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """The sum of the tokens of each segment; zero for an empty one.

    x: ``[T, ...]``; offsets: int64 ``[S + 1]``, 0 to T, not falling. Returns ``[S, ...]`` in
    the dtype of x, summed in fp32 or wider, in one order: every run gives the same bits.
    Gradient: x. ValueError for offsets that do not fit.
    """
    check_tokens(x, offsets)
    return eager.segment_sum(x, offsets)


def spread(values: torch.Tensor, offsets: torch.Tensor, tokens: int) -> torch.Tensor:
    """Each token gets the row of its segment.

    values: ``[S, ...]``; offsets: int64 ``[S + 1]``, 0 to T, not falling; tokens: T, which only
    the device knows otherwise. Returns ``[T, ...]``. The gradient of values is summed in fp32 or
    wider. ValueError for shapes or offsets that do not fit.
    """
    if values.dim() == 0 or offsets.shape != (len(values) + 1,):
        raise ValueError(
            f"values [S, ...] and offsets [S + 1] do not fit: {[*values.shape]}, {[*offsets.shape]}"
        )
    check_offsets(offsets, tokens)
    return eager.spread(values, offsets, tokens)


def segment_softmax(scores: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """The softmax over the tokens of each segment, for each column.

    scores: ``[T, c]``, of any size; offsets: int64 ``[S + 1]``, 0 to T, not falling. Returns
    ``[T, c]`` in the dtype of scores, computed in fp32 or wider. Gradient: scores. ValueError
    for shapes or offsets that do not fit.
    """
    if scores.dim() != 2:
        raise ValueError(f"scores must be [T, c], got {tuple(scores.shape)}")
    check_tokens(scores, offsets)
    return eager.segment_softmax(scores, offsets)


def check_tokens(x: torch.Tensor, offsets: torch.Tensor) -> None:
    """ValueError, in one line, unless x is ``[T, ...]`` and offsets its segments."""
    if x.dim() == 0:
        raise ValueError("the tokens must be [T, ...], got a scalar")
    check_offsets(offsets, len(x))
