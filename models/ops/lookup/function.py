"""Rows by number with their gradient, over whatever sums rows by number."""

from typing import Any, Protocol

import torch
from torch.nn import functional


class Sums(Protocol):
    """A module that sums."""

    def row_sums(self, values: torch.Tensor, places: torch.Tensor, rows: int) -> torch.Tensor:
        """See ``ops.row_sums``."""


def lookup(sums: Sums, table: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The rows of table at places."""
    rows: torch.Tensor = Lookup.apply(sums, table, places)
    return rows


class Lookup(torch.autograd.Function):
    """Keeps the places."""

    @staticmethod
    def forward(ctx: Any, sums: Sums, table: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.sums, ctx.rows = sums, len(table)
        return functional.embedding(places, table)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        total = ctx.sums.row_sums(flat, places.flatten(), ctx.rows)
        return None, total.to(gradient.dtype), None
