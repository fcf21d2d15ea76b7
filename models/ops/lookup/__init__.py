"""Rows of a table by number, and sums of rows by number: each is the other's gradient."""

import torch
from torch.nn import functional

from models.ops import gpu
from models.ops.lookup import eager, function


def lookup(table: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The rows of table at places.

    table: ``[m, d]``; places: int64, any shape, each in 0..m-1. Returns ``[*places, d]`` in the
    dtype of table. The gradient of table (dense) is ``row_sums``: summed in fp32 or wider and,
    on every device, in one order. ValueError for shapes that do not fit.
    """
    if table.dim() != 2 or places.dtype != torch.int64:
        raise ValueError(
            f"table [m, d] and int64 places do not fit: {[*table.shape]}, {places.dtype}"
        )
    if gpu.serves(table):
        from models.ops.lookup import triton

        return function.lookup(triton, table, places)
    if table.dtype == torch.bfloat16 and table.requires_grad:
        return function.lookup(eager, table, places)
    return functional.embedding(places, table)  # sums the gradient in the table's dtype


def row_sums(values: torch.Tensor, places: torch.Tensor, rows: int) -> torch.Tensor:
    """The sum of the values of each place; zero where there are none.

    values: ``[n, w]``; places: int64 ``[n]``, each in 0..rows-1, or -1 for a value that takes no
    part. Returns ``[rows, w]`` in fp32 (fp64 for fp64). The values of a place are summed in an
    order that follows from ``n`` and their order alone, on a GPU too: the same bits every time. No
    gradient. ValueError for shapes that do not fit.
    """
    if values.dim() != 2 or places.shape != values.shape[:1] or places.dtype != torch.int64:
        raise ValueError(
            f"values [n, w] and int64 places [n] do not fit: {[*values.shape]}, {[*places.shape]}"
        )
    if gpu.serves(values):
        from models.ops.lookup import triton

        return triton.row_sums(values, places, rows)
    return eager.row_sums(values, places, rows)
