"""What ranking counts in a tile of scores: who is above a score, who reaches it, who is no number.

No gradients. A tile is made to fit the cache, and each of these reads it once.
"""

import torch

from models.ops import extension
from models.ops.counting import cpu, reference


def count_reaching(
    x: torch.Tensor, rows: torch.Tensor, goals: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many numbers of row ``rows[j]`` are greater than ``goals[j]``, and how many at least it.

    x: floating point ``[n, w]``; rows: int64 ``[m]``, any of 0..n - 1; goals: ``[m]`` in the dtype
    of x. Returns int64 ``[m]`` twice. No number (NaN) is counted by neither.
    """
    if goals.shape != rows.shape or goals.dtype != x.dtype:
        raise ValueError(f"a goal a row in {x.dtype}, not {goals.dtype} {tuple(goals.shape)}")
    compute = cpu.count_reaching if _compiled(x) else reference.count_reaching
    return compute(x, rows, goals)


def add_health(x: torch.Tensor, health: torch.Tensor) -> None:
    """Add to ``health[i]`` a number that is finite where all of row i are; floating point ``[n]``.

    Finite numbers near the end of the range may pass for infinite ones.
    """
    compute = cpu.add_health if _compiled(x) else reference.add_health
    compute(x, health)


def _compiled(x: torch.Tensor) -> bool:
    return x.dtype == torch.float32 and x.is_contiguous() and extension.serves(x)
