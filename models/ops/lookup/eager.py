"""Sums by number in plain torch, which adds in a fixed order if asked in the right way."""

import torch


def row_sums(values: torch.Tensor, places: torch.Tensor, rows: int) -> torch.Tensor:
    """The sum of the values of each place."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    total = wide.new_zeros(rows + 1, values.shape[1])  # the last for what takes no part
    add_rows_(total, places.where(places >= 0, rows), wide)
    return total[:rows]


def add_rows_(total: torch.Tensor, places: torch.Tensor, values: torch.Tensor) -> None:
    """Add values to the rows at places: in their order, whatever the device.

    On a GPU index_add_ adds atomically and index_put_ does not; on a CPU with several threads it
    is the other way round.
    """
    if total.is_cuda:
        total.index_put_((places,), values, accumulate=True)
    else:
        total.index_add_(0, places, values)
