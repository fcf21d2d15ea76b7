"""Attention within the segments of a packed batch, causal or two-way."""

import torch

from models.ops import gpu
from models.ops.attention import buckets, cpu
from models.ops.offsets import check_offsets

WIDEST_TRITON_HEAD = 128


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    causal: bool = True,
) -> torch.Tensor:
    """softmax(q kᵀ / sqrt(hd)) v, each token over tokens of its own segment.

    causal: over itself and the earlier ones; else over all of them. q, k, v: ``[T, H, hd]``;
    offsets: int64 ``[S + 1]``, 0 to T, not falling (empty segments are allowed). Returns
    ``[T, H, hd]`` in the dtype of q. On a CPU bf16 is computed in fp32 where the compiled kernel
    serves or the processor does not multiply bf16. Gradients: q, k, v. ValueError for shapes or
    offsets that do not fit.

    Source: Vaswani et al., 2017; causal as in SASRec (Kang and McAuley, 2018), two-way as in
    BERT4Rec (Sun et al., 2019).
    """
    if q.dim() != 3 or k.shape != q.shape or v.shape != q.shape:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (q, k, v))
        raise ValueError(f"q, k and v must share one shape [T, H, hd], got {shapes}")
    check_offsets(offsets, len(q))
    if len(q) == 0:
        return q + k + v  # every input gets a gradient
    if gpu.serves(q, k, v) and q.shape[2] <= WIDEST_TRITON_HEAD:
        from models.ops.attention import triton

        return triton.attention(q, k, v, offsets, causal)
    if cpu.serves(q, k, v, offsets):
        return cpu.attention(q, k, v, offsets, causal)
    return buckets.attention(q, k, v, offsets, causal)
