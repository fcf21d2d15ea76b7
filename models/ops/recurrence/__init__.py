"""Diagonal complex linear recurrence over packed segments."""

import torch

from models.ops import extension, gpu, segments
from models.ops.recurrence import cpu, eager, function


def diagonal_recurrence(
    u: torch.Tensor,
    decay: torch.Tensor,
    reset: torch.Tensor,
    initial: torch.Tensor | None = None,
) -> torch.Tensor:
    """h_t = u_t + (1 - reset_t) λ h_{t-1}, for N complex channels.

    u: ``[T, 2N]``, real parts in the first N columns, imaginary parts in the last N.
    decay: ``[2, N]``, Re λ and Im λ. reset: bool ``[T]``, True at the first token of a segment.
    initial: ``[2N]``, the state before the first token (seen where ``reset[0]`` is False), or
    None for zero.

    Returns h like u. The state and the gradient of λ are accumulated in fp32 or wider whatever
    the dtype of u. On a CPU values do not depend on the number of threads. Gradients: u, decay,
    initial. ValueError for shapes or dtypes that do not fit.

    Source: LRU (Orvieto et al., 2023) as used by LRURec (Yue et al., 2024), whose left-pad mask
    equals this reset.
    """
    check(u, decay, reset, initial)
    if gpu.serves(u):
        from models.ops.recurrence import triton

        return function.recurrence(triton, u, decay, reset, initial)
    if extension.serves(u):
        return function.recurrence(cpu, u, decay, reset, initial)
    return eager.recurrence(u, decay, reset, initial)


def check(
    u: torch.Tensor, decay: torch.Tensor, reset: torch.Tensor, initial: torch.Tensor | None
) -> None:
    """ValueError, in one line, for arguments that do not fit together."""
    if u.dim() != 2 or u.shape[1] % 2:
        raise ValueError(f"u must be [T, 2N], got {tuple(u.shape)}")
    if decay.shape != (2, u.shape[1] // 2):
        raise ValueError(f"decay must be [2, {u.shape[1] // 2}], got {tuple(decay.shape)}")
    segments.check_reset(reset, len(u))
    if initial is not None and initial.shape != u.shape[1:]:
        raise ValueError(f"initial must be [{u.shape[1]}], got {tuple(initial.shape)}")
