"""Scores over an item table that is dealt over the workers: all rank together, each its rows.

Every worker scores the queries of all against the rows it keeps. What it finds, counts of better
items or lists of the best, adds up to what one worker with the whole table finds, to the last bit:
a row stands in the same tile at the same place on however many workers.
"""

from typing import Any, Protocol

import torch
import torch.distributed as dist

from models.batch import PackedBatch
from pipeline.evaluate.evaluate import with_gap
from pipeline.evaluate.scores import TILES, Joined, Packed, TableScores
from pipeline.world import World


class Rows(Protocol):
    """The part of a table that this worker keeps."""

    rows: torch.Tensor  # ``[held, d]``, or ``[held, d + 1]`` with the biases last
    held: range
    vectors: int  # d

    def fetch(self, items: torch.Tensor, training: bool) -> None:
        """Give the model the rows of ``items``; all workers call together."""


class ShardedScorer:
    """A model whose item table is dealt over the workers."""

    def __init__(self, model: Any, table: Rows, world: World, masks: bool = False) -> None:
        self._model, self._table, self._world, self._masks = model, table, world, masks

    def score(self, batch: PackedBatch) -> "ShardedScores":
        """See ``Scorer``; here ranking calls all workers together too."""
        batch = (with_gap(batch) if self._masks else batch).to(self._world.device)
        self._table.fetch(batch.items, training=False)
        hidden = self._model.encode(batch)
        return ShardedScores(hidden[batch.offsets[1:] - 1].float(), self._table, self._world)


class ShardedScores(TableScores):
    """The queries of all workers against the rows of this one; the rest of its tiles is zero."""

    together = True

    def __init__(self, hidden: torch.Tensor, table: Rows, world: World) -> None:
        self._world = world
        counts = world.gather(len(hidden))
        everyone = _gathered(hidden, counts)
        own = sum(counts[: world.rank])
        self.own = slice(own, own + len(hidden))
        d = table.vectors
        biases = table.rows[:, d] if table.rows.shape[1] > d else None
        columns = world.gather(table.held.stop)[-1]
        super().__init__(everyone, table.rows[:, :d], biases, held=table.held, columns=columns)
        width = TILES[hidden.device.type][1]
        self.tiles = range(table.held.start // width, -(-table.held.stop // width))
        if not len(table.held):
            self.tiles = range(0)

    def everyone(self, value: Any) -> list[Any]:
        """See ``Scores``."""
        return self._world.gather(value)

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """See ``Scores``."""
        if self._world.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def join(self, packed: Packed) -> Packed:
        """See ``Scores``."""
        return Joined.of(self._world.gather(packed))


def _gathered(hidden: torch.Tensor, counts: list[int]) -> torch.Tensor:
    if len(counts) == 1:
        return hidden
    mine = hidden.new_zeros(max(counts), hidden.shape[1])
    mine[: len(hidden)] = hidden
    parts = [torch.empty_like(mine) for _ in counts]
    dist.all_gather(parts, mine)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
