"""Sums over segments, one segment after another."""

from itertools import pairwise

import torch


def segment_sum(x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """``[T, ...]`` -> ``[S, ...]``."""
    sums = [x[begin:end].sum(0) for begin, end in pairwise(offsets.tolist())]
    return torch.stack(sums) if sums else x[:0]


def spread(values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """``[S, ...]`` -> ``[T, ...]``."""
    lengths = offsets.diff().tolist()
    rows = [row.expand(n, *row.shape) for row, n in zip(values, lengths, strict=True)]
    return torch.cat(rows) if rows else values[:0]


def segment_softmax(scores: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """``[T, c]`` -> ``[T, c]``."""
    parts = [scores[begin:end].softmax(0) for begin, end in pairwise(offsets.tolist())]
    return torch.cat(parts) if parts else scores[:0]
