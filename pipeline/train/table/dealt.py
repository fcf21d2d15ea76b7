"""This rank's rows of an item table that is dealt over the ranks: looked up, saved, taken over.

A row of ``w`` columns is the item's vector and, where the model has biases, its bias behind it.
Checkpoints know them as ``item_embedding.weight`` and ``item_bias``, like those of a dense table.
"""

from collections.abc import Iterator

import torch

from models.item_table import FetchedRows
from pipeline.train.engine import Piece, Read
from pipeline.train.table.exchange import Deal, Exchange
from pipeline.world import World

VECTORS, BIASES = "item_embedding.weight", "item_bias"
BLOCK_ROWS = 1 << 16  # rows that are begun, read and updated at once: bounds what is held beside


class DealtTable:
    """The rows that fall to this rank, zeros until they are read. All ranks call alike."""

    def __init__(
        self, fetched: FetchedRows, world: World, dtype: torch.dtype = torch.float32
    ) -> None:
        self.deal = Deal(fetched.num_embeddings, world.world_size)
        self.held = self.deal.held(world.rank)
        self._world, self._fetched = world, fetched
        self.rows = torch.zeros(len(self.held), fetched.width, dtype=dtype, device=world.device)
        self._exchange: Exchange | None = None
        self._leaf = torch.zeros(0, fetched.width)

    @property
    def vectors(self) -> int:
        """Columns of a row that are the item's vector."""
        return self._fetched.d

    def fetch(self, items: torch.Tensor, training: bool) -> None:
        """Have the rows of ``items`` (int64 ``[n]``) at hand in the model until the next fetch.

        Without any, the model finds zeros for item 0: what a dead micro-batch looks up is touched
        by nobody.
        """
        ids = torch.unique(items.to(self._world.device))
        self._exchange = Exchange(ids, self.deal, self._world)
        self._leaf = self._exchange.fetch(self.rows).float().requires_grad_(training)
        if len(ids):
            self._fetched.hold(ids, self._leaf)
        else:
            self._fetched.hold(ids.new_zeros(1), self._leaf.new_zeros(1, self._leaf.shape[1]))

    def kinds(self) -> dict[str, torch.Tensor]:
        """What is kept of every row: ``[held, w]``, or ``[held]``."""
        return {"weight": self.rows}

    def restore(self, read: Read) -> None:
        """Take over what is kept here of a state."""
        for first in range(self.held.start, self.held.stop, BLOCK_ROWS):
            for piece, part in self.pieces(first, min(first + BLOCK_ROWS, self.held.stop)):
                part.copy_(read(piece.tensor, piece.begin, piece.end).view(part.shape))

    def pieces(self, begin: int, end: int) -> Iterator[tuple[Piece, torch.Tensor]]:
        """Rows ``begin`` up to ``end`` of everything, as views into what is kept."""
        d = self._fetched.d
        here = slice(begin - self.held.start, end - self.held.start)
        for kind, tensor in self.kinds().items():
            if tensor.dim() == 1:
                yield Piece(f"{kind}/{VECTORS}", begin, end), tensor[here]
                continue
            yield Piece(f"{kind}/{VECTORS}", begin * d, end * d), tensor[here, :d]
            if self._fetched.biased:
                yield Piece(f"{kind}/{BIASES}", begin, end), tensor[here, d]
