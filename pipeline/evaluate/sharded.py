"""Scores over an item table that is dealt over the workers: all rank together, each its rows.

Every worker scores the queries of all against the rows it keeps. What it finds, counts of better
items or lists of the best, adds up to what one worker with the whole table finds, to the last bit:
a row of the table, and a query, stand at the same place of a tile on however many workers.
"""

from typing import Any, Protocol

import torch
import torch.distributed as dist

from models.batch import PackedBatch
from pipeline.evaluate.evaluate import last_hidden, with_gap
from pipeline.evaluate.scores import TILES, TableScores
from pipeline.world import World


class Rows(Protocol):
    """The part of a table that this worker keeps, of items ``held``.

    rows: ``[held, vectors]``, or one more, the items' biases.
    """

    rows: torch.Tensor
    held: range

    @property
    def vectors(self) -> int:
        """Columns that are the item's vector."""

    def fetch(self, items: torch.Tensor, training: bool) -> None:
        """Give the model the rows of ``items``; all workers call together."""


class ShardedScorer:
    """A model whose item table is dealt over the workers.

    All workers score and rank together, so each does so as often as the others.
    """

    def __init__(self, model: Any, table: Rows, world: World, masks: bool = False) -> None:
        self.world = world
        self._model, self._table, self._masks = model, table, masks

    def score(self, batch: PackedBatch) -> "ShardedScores":
        """See ``Scorer``."""
        batch = with_gap(batch) if self._masks else batch
        self._table.fetch(batch.items, training=False)
        hidden = last_hidden(self._model.encode, batch, self.world.device)
        return ShardedScores(hidden, self._table, self.world)


class ShardedScores(TableScores):
    """The queries of all workers against the rows of this one."""

    together = True

    def __init__(self, hidden: torch.Tensor, table: Rows, world: World) -> None:
        self._world = world
        queries, width = TILES[hidden.device.type]
        # Whole tiles for each worker: where a query stands in one is the same without the others.
        room = -(-max(world.gather(len(hidden))) // queries) * queries
        mine = hidden.new_zeros(room, hidden.shape[1])
        mine[: len(hidden)] = hidden
        everyone = [torch.empty_like(mine) for _ in range(world.world_size)]
        if world.world_size == 1:
            everyone = [mine]
        else:
            dist.all_gather(everyone, mine)
        d = table.vectors
        super().__init__(
            torch.cat(everyone),
            table.rows[:, :d],
            table.rows[:, d] if table.rows.shape[1] > d else None,
        )
        self.own = slice(world.rank * room, world.rank * room + len(hidden))
        self.columns, self.held = world.gather(table.held.stop)[-1], table.held
        self.tiles = range(table.held.start // width, -(-table.held.stop // width))
        if not len(table.held):
            self.tiles = range(0)

    def guess(self, q: int, at: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See ``Scores``."""
        found = self._hidden.new_zeros(len(at))
        here = (targets >= self.held.start) & (targets < self.held.stop)
        found[here] = super().guess(q, at[here], targets[here])
        return found

    def everyone(self, value: Any) -> list[Any]:
        """See ``Scores``."""
        return self._world.gather(value)

    def dealt_back(self, tensor: torch.Tensor) -> torch.Tensor:
        """See ``Scores``: each worker gets what is about its own queries, and no more."""
        received = tensor
        if self._world.world_size > 1:
            received = torch.empty_like(tensor)
            dist.all_to_all_single(received, tensor)
        by_worker = received.view(self._world.world_size, -1, tensor.shape[1])
        return by_worker[:, : self.own.stop - self.own.start].transpose(0, 1)

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """See ``Scores``."""
        if self._world.world_size > 1:
            dist.all_reduce(tensor)
        return tensor
