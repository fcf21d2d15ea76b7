"""Causal attention within the segments of a packed batch."""

import torch

from models.ops.attention import cpu


def causal_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """softmax(q kᵀ / sqrt(hd)) v, each token over itself and the earlier tokens of its segment.

    q, k, v: ``[T, H, hd]``; offsets: int64 ``[S + 1]``, 0 to T, not falling (empty segments are
    allowed). Returns ``[T, H, hd]`` in the dtype of q. bf16 on a CPU without bf16 multiplication
    is computed in fp32. Gradients: q, k, v. ValueError for shapes or offsets that do not fit.

    Source: Vaswani et al., 2017, as in SASRec (Kang and McAuley, 2018).
    """
    if q.dim() != 3 or k.shape != q.shape or v.shape != q.shape:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (q, k, v))
        raise ValueError(f"q, k and v must share one shape [T, H, hd], got {shapes}")
    if offsets.dim() != 1 or len(offsets) == 0:
        raise ValueError(f"offsets must be [S + 1], got {tuple(offsets.shape)}")
    lengths = offsets.diff()
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(q) or bool((lengths < 0).any()):
        raise ValueError(f"offsets must rise from 0 to {len(q)}")
    return cpu.attention(q, k, v, offsets)
