"""Where a model looks items up: a table of its own, or rows fetched from one that lives outside."""

import torch
from torch import nn

from models.base import SequentialModel
from models.ops import lookup


class Embedding(nn.Embedding):
    """A table whose gradient has the same bits every time, on a GPU too."""

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """``[n]`` -> ``[n, d]``."""
        return lookup(self.weight, items)


class FetchedRows(nn.Module):
    """Stands in for a model's embedding and bias: looks items up among the rows fetched for them.

    num_embeddings: rows of the whole table, ``V + 1``.
    """

    def __init__(self, num_embeddings: int, d: int, biased: bool) -> None:
        super().__init__()
        self.num_embeddings, self.d, self.biased = num_embeddings, d, biased
        self._dtype = torch.float32
        self._ids = torch.zeros(0, dtype=torch.int64)
        self._rows = torch.zeros(0, self.width)

    @property
    def width(self) -> int:
        """Columns of a row."""
        return self.d + self.biased

    def hold(self, ids: torch.Tensor, rows: torch.Tensor) -> None:
        """Answer from these rows from now on.

        ids: int64 ``[m]``, sorted, no item twice. rows: fp32 ``[m, d]``, or ``[m, d + 1]`` where
        the last column is the item's bias.
        """
        self._ids, self._rows = ids, rows

    def to_dtype(self, dtype: torch.dtype) -> None:
        """Give the model its inputs in this dtype; their gradients are summed up in fp32."""
        self._dtype = dtype

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """``[n]`` -> ``[n, d]``."""
        return lookup(self._rows[:, : self.d], self._places(items)).to(self._dtype)

    def class_rows(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See ``SequentialModel.item_rows``."""
        places = self._places(items)
        found = lookup(self._rows, places)
        return found[:, : self.d], found[:, self.d] if self.biased else None

    def _places(self, items: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(self._ids, items)


def take_table_out(model: SequentialModel, catalogue_size: int) -> FetchedRows:
    """Put rows to be fetched in the place of the model's own table and bias."""
    biased = model.item_bias is not None
    fetched = FetchedRows(catalogue_size + 1, model.config.d, biased)
    model.item_embedding = fetched  # type: ignore[assignment]
    model.item_bias = None
    model.item_rows = fetched.class_rows  # type: ignore[method-assign]
    return fetched
