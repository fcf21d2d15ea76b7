"""Causal linear attention within the segments of a packed batch."""

import torch

from models.ops import extension, gpu, segments
from models.ops.linear_attention import cpu, eager, function

# A program of the Triton form holds whole rows of q and k (in the backward pass also of v).
WIDEST_ON_GPU = 128


def causal_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    reset: torch.Tensor,
    initial: torch.Tensor | None = None,
) -> torch.Tensor:
    """o_t = q_t S_t with S_t = (1 - reset_t) S_{t-1} + k_tᵀ v_t, a matrix for each head.

    Neither normalised nor scaled, and without a feature map: those are the caller's.

    q, k: ``[T, H, m]``; v: ``[T, H, n]``; all of one dtype. reset: bool ``[T]``, True at the
    first token of a segment. initial: ``[H, m, n]``, S before the first token (seen where
    ``reset[0]`` is False), or None for zero.

    Returns ``[T, H, n]`` in the dtype of v. Sums are in fp32 or wider whatever the dtype.
    Memory grows with T and with nothing but T: neither the scores of a segment nor S of every
    token are held. On a CPU values do not depend on the number of threads.
    Gradients: q, k, v, initial. ValueError for shapes or dtypes that do not fit.

    Source: Katharopoulos et al., 2020; the un-normalised numerator of RecGRELA's attention.
    """
    check(q, k, v, reset, initial)
    if gpu.serves(q, k, v) and max(q.shape[2], v.shape[2]) <= WIDEST_ON_GPU:
        from models.ops.linear_attention import triton

        return function.attention(triton.run, q, k, v, reset, initial)
    if extension.serves(q, k, v):
        return function.attention(cpu.run, q, k, v, reset, initial)
    return eager.attention(q, k, v, reset, initial)


def check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    reset: torch.Tensor,
    initial: torch.Tensor | None,
) -> None:
    """ValueError, in one line, for arguments that do not fit together."""
    if q.dim() != 3 or k.shape != q.shape or v.dim() != 3 or v.shape[:2] != q.shape[:2]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (q, k, v))
        raise ValueError(f"q, k and v must be [T, H, m], [T, H, m] and [T, H, n], got {shapes}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must share a dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    segments.check_reset(reset, len(q))
    state = (*q.shape[1:], v.shape[2])
    if initial is not None and initial.shape != state:
        raise ValueError(f"initial must be {list(state)}, got {tuple(initial.shape)}")
