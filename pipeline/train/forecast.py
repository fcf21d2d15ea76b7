"""What a run will take, before it is started: steps, tokens, memory of a worker, checkpoints."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

import models
from pipeline.config import Recipe
from pipeline.manifest import Dataset
from pipeline.stream.order import micro_steps
from pipeline.train.memory import memory_of


@dataclass(frozen=True)
class Forecast:
    """Counts of a run, and the bytes of one worker among ``workers`` while it trains.

    memory: by part, at the peak of training while a checkpoint is written (``memory_of``). What
    libraries take for themselves and the ranking are not in it.
    """

    steps: int
    tokens_a_step: int
    train_events: int
    steps_an_epoch: int
    epochs: float
    workers: int
    micro_batches: int
    parameters: int
    table: int
    memory: dict[str, int]
    checkpoint_bytes: int
    checkpoints_kept: int

    def as_document(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "memory_total": sum(self.memory.values())}


def forecast(recipe: Recipe, dataset: Dataset, workers: int) -> Forecast:
    """The forecast of a recipe on ``workers`` workers."""
    with torch.device("meta"):
        model = models.build(recipe.model, dataset.manifest.catalogue_size)
    parameters = sum(p.numel() for p in model.parameters())
    table = sum(part.numel() for part in model.item_scores() if part is not None)
    tokens = recipe.data.lanes * recipe.data.lane_tokens
    memory = memory_of(recipe, dataset, workers)
    events = int(dataset.train_events.sum())
    steps_an_epoch = max(1, -(-events // tokens))
    return Forecast(
        steps=recipe.train.steps,
        tokens_a_step=tokens,
        train_events=events,
        steps_an_epoch=steps_an_epoch,
        epochs=recipe.train.steps / steps_an_epoch,
        workers=workers,
        micro_batches=micro_steps(workers, recipe.data.lanes),
        parameters=parameters,
        table=table,
        memory=memory.parts,
        checkpoint_bytes=memory.state,
        checkpoints_kept=recipe.train.keep_checkpoints + 1,
    )
