"""Rows by number, and their sums by number, through a matrix of zeros and ones."""

import torch


def lookup(table: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The rows of table at places."""
    rows = matches(places.flatten(), len(table)).to(table.dtype) @ table
    return rows.view(*places.shape, table.shape[1])


def row_sums(values: torch.Tensor, places: torch.Tensor, rows: int) -> torch.Tensor:
    """The sum of the values of each place."""
    wide = torch.promote_types(values.dtype, torch.float32)
    return matches(places, rows).to(wide).T @ values.to(wide)


def matches(places: torch.Tensor, rows: int) -> torch.Tensor:
    """bool ``[n, rows]``."""
    return places[:, None] == torch.arange(rows, device=places.device)
