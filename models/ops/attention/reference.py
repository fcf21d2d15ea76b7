"""Attention, one segment after another."""

from itertools import pairwise

import torch


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, causal: bool
) -> torch.Tensor:
    """softmax(q kᵀ / sqrt(hd)) v within each segment."""
    wide = torch.promote_types(q.dtype, torch.float32)
    outputs = []
    bounds = offsets.tolist()
    for begin, end in pairwise(bounds):
        queries, keys, values = (x[begin:end].to(wide).transpose(0, 1) for x in (q, k, v))
        scores = queries @ keys.transpose(1, 2) / q.shape[-1] ** 0.5
        if causal:
            later = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        outputs.append((scores.softmax(-1) @ values).transpose(0, 1))
    return torch.cat(outputs).to(q.dtype) if outputs else q + k + v
