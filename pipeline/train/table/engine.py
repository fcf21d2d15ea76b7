"""An engine of the trunk and, beside it, a sharded item table: together one Engine."""

from typing import Any

import torch

from models import PackedBatch
from models.losses import Drawn, Loss
from pipeline.config import TrainConfig
from pipeline.evaluate import Scorer, ShardedScorer
from pipeline.train.engine import Engine, Piece, Read, clip_factor
from pipeline.train.table.sharded import ShardedTable
from pipeline.world import World


class TableEngine:
    """Rows come before a micro-batch, their gradients go after it; one norm clips both parts.

    loss: what the trunk's engine trains.
    """

    def __init__(
        self, trunk: Engine, loss: Loss, table: ShardedTable, config: TrainConfig, world: World
    ) -> None:
        self.model, self.clock = trunk.model, trunk.clock
        self._trunk, self._loss, self._table, self._world = trunk, loss, table, world
        self._clip_norm = config.optimizer.clip_norm
        self._masks = config.objective.masks

    def backward(
        self, batch: PackedBatch, step_targets: int, drawn: Drawn | None = None
    ) -> torch.Tensor:
        with self.clock.timed("exchange"):
            drawn = drawn or self._loss.draw(batch)
            classes = self._loss.items(batch, drawn)
            live = bool(batch.target_mask.any())
            items = torch.cat([batch.items, classes]) if live else classes[:0]
            self._table.fetch(items, training=True)
        loss = self._trunk.backward(batch, step_targets, drawn)
        with self.clock.timed("exchange"):
            self._table.collect()
        return loss

    def update(self, lr: float, beside: float = 0.0) -> float:
        with self.clock.timed("update"):
            beside += self._table.squared_norm()
        norm = self._trunk.update(lr, beside)
        with self.clock.timed("update"):
            self._table.update(lr, clip_factor(norm, self._clip_norm))
        return norm

    def shapes(self) -> dict[str, torch.Size]:
        return self._trunk.shapes() | self._table.shapes()

    def export(self) -> list[tuple[Piece, torch.Tensor]]:
        return self._trunk.export() + self._table.export()

    def restore(self, read: Read, updates: int) -> None:
        self._trunk.restore(read, updates)
        self._table.resume(read, updates)

    def scoring(self) -> Any:
        return self._trunk.scoring()

    def scorer(self) -> Scorer:
        return ShardedScorer(self.model, self._table, self._world, self._masks)
