"""Experts that hold running softmax averages of a segment's prefix, and are read by each token."""

import torch

from models.ops import extension, gpu, segments
from models.ops.experts import cpu, eager, function
from models.ops.experts.reference import State, empty


def running_softmax_experts(
    scores: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    reset: torch.Tensor,
    initial: State | None = None,
) -> torch.Tensor:
    """o_t = softmax_j(q_t · K_t[j] / sqrt(e)) V_t[j], for H heads of K experts of width e.

    Expert j holds averages over the tokens s <= t of the token's own segment,
    K_t[j] = Σ_s w_ts k_s and V_t[j] = Σ_s w_ts v_s with w_ts = softmax of scores_s[j] over s.

    scores: ``[T, H, K]``, finite, of any size; q, k, v: ``[T, H, e]``. reset: bool ``[T]``, True
    at the first token of a segment. initial: the state before the first token (seen where
    ``reset[0]`` is False) as (z ``[H, K]``, K ``[H, K, e]``, V ``[H, K, e]``), z being the
    log of the softmax's denominator so far (-inf: nothing yet); None for nothing yet.

    Returns ``[T, H, e]`` in the dtype of q. Scores and the state are taken in fp32, or fp64 where
    q is. Time and memory are linear in T. On a CPU values do not depend on the number of threads.
    Gradients: scores, q, k, v and the three of initial. ValueError for shapes or dtypes that do
    not fit.

    Source: the causal form of ELASTIC's linear dispatcher attention (Deng et al., 2024), which is
    the recurrence of attention with bounded-memory control (Peng et al., 2022).
    """
    check(scores, q, k, v, reset, initial)
    if len(q) == 0:
        return empty(scores, q, k, v, initial)
    state = state_before(scores, q, reset, initial)
    if gpu.serves(q):
        from models.ops.experts import triton

        return function.experts(triton, scores, q, k, v, reset, state)
    if extension.serves(q):
        return function.experts(cpu, scores, q, k, v, reset, state)
    return eager.experts(scores, q, k, v, reset, state)


def state_before(
    scores: torch.Tensor, q: torch.Tensor, reset: torch.Tensor, initial: State | None
) -> State:
    """z, K and V before the first token in fp32 or wider, with z = -inf where nothing is carried.

    So the forms know one kind of start only.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    held = scores.shape[1:]
    z = torch.full(held, float("-inf"), dtype=wide, device=q.device)
    nothing = torch.zeros(*held, q.shape[2], dtype=wide, device=q.device)
    if initial is None:
        return z, nothing, nothing
    log_normaliser, keys, values = (tensor.to(wide) for tensor in initial)
    return (
        torch.where(reset[0], z, log_normaliser),
        torch.where(reset[0], nothing, keys),
        torch.where(reset[0], nothing, values),
    )


def check(
    scores: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    reset: torch.Tensor,
    initial: State | None,
) -> None:
    """ValueError, in one line, for arguments that do not fit together."""
    if q.dim() != 3 or 0 in q.shape[1:] or k.shape != q.shape or v.shape != q.shape:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (q, k, v))
        raise ValueError(f"q, k and v must share one shape [T, H, e], got {shapes}")
    if k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(f"q, k and v must share one dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if scores.dim() != 3 or scores.shape[:2] != q.shape[:2] or scores.shape[2] == 0:
        raise ValueError(f"scores must be [{len(q)}, {q.shape[1]}, K], got {tuple(scores.shape)}")
    segments.check_reset(reset, len(q))
    if initial is None:
        return
    held = scores.shape[1:]
    wanted = [held, (*held, q.shape[2]), (*held, q.shape[2])]
    if [tensor.shape for tensor in initial] != wanted:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in initial)
        raise ValueError(f"initial must be {', '.join(map(str, map(tuple, wanted)))}, got {shapes}")
