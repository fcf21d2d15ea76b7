"""Counting through the C++ kernel (counting.cpp)."""

import torch

from models.ops import extension


def count_reaching(
    x: torch.Tensor, rows: torch.Tensor, goals: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row by row, both counts at once."""
    above, reached = torch.empty_like(rows), torch.empty_like(rows)
    given = (x.shape[1], rows.contiguous(), goals.contiguous(), len(rows))
    extension.call("count_reaching", x, *given, above, reached)
    return above, reached


def add_health(x: torch.Tensor, health: torch.Tensor) -> None:
    """Not-a-number where a row has one that is not finite."""
    extension.call("add_health", x, len(x), x.shape[1], health)
