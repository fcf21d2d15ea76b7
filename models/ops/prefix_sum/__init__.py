"""Running sum over packed segments."""

import torch

from models.ops import extension, gpu, segments
from models.ops.prefix_sum import cpu, eager, function


def prefix_sum(
    x: torch.Tensor, reset: torch.Tensor, initial: torch.Tensor | None = None
) -> torch.Tensor:
    """S_t = x_t + (1 - reset_t) S_{t-1}.

    x: ``[T, d]``. reset: bool ``[T]``, True at the first token of a segment. initial: ``[d]``,
    the sum before the first token (seen where ``reset[0]`` is False), or None for zero.

    Returns S like x. The sum is kept in fp32 or wider whatever the dtype of x, and starts anew in
    each segment: it is never a difference of longer sums, which would cancel. On a CPU values do
    not depend on the number of threads. Gradients: x, initial. ValueError for shapes or dtypes
    that do not fit.

    Source: the causal sum of Hydra attention (Bolya et al., 2022), and the normaliser of linear
    attention (Katharopoulos et al., 2020).
    """
    check(x, reset, initial)
    if gpu.serves(x):
        from models.ops.prefix_sum import triton

        return function.prefix_sum(triton.run, x, reset, initial)
    if extension.serves(x):
        return function.prefix_sum(cpu.run, x, reset, initial)
    return eager.prefix_sum(x, reset, initial)


def check(x: torch.Tensor, reset: torch.Tensor, initial: torch.Tensor | None) -> None:
    """ValueError, in one line, for arguments that do not fit together."""
    if x.dim() != 2:
        raise ValueError(f"x must be [T, d], got {tuple(x.shape)}")
    segments.check_reset(reset, len(x))
    if initial is not None and initial.shape != x.shape[1:]:
        raise ValueError(f"initial must be [{x.shape[1]}], got {tuple(initial.shape)}")
