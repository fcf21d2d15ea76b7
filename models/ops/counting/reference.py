"""Counting in plain torch."""

import torch


def count_reaching(
    x: torch.Tensor, rows: torch.Tensor, goals: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """By copies of as many rows as x has."""
    above, reached = torch.zeros_like(rows), torch.zeros_like(rows)
    flags = torch.empty_like(x)  # 0.0 and 1.0: much faster to sum than booleans
    for first in range(0, len(rows), len(x)):
        here = slice(first, first + len(x))
        part, goal = x[rows[here]], goals[here, None]
        buffer = flags[: len(part)]
        above[here] = torch.gt(part, goal, out=buffer).sum(1).long()
        reached[here] = torch.ge(part, goal, out=buffer).sum(1).long()
    return above, reached


def add_health(x: torch.Tensor, health: torch.Tensor) -> None:
    """A sum with a term that is not finite never is, and costs less than asking each."""
    health += x.sum(1)
