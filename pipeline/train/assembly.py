"""From a recipe to the engine that trains it: model, loss, item table, trunk."""

from functools import partial

import torch

import models
from models import SequentialModel
from models.item_table import take_table_out
from models.losses import Loss
from pipeline.config import Recipe, TrainConfig
from pipeline.manifest import Dataset
from pipeline.stream.order import micro_steps
from pipeline.train.engine import Engine, TorchEngine
from pipeline.train.loss import loss_of
from pipeline.train.table.engine import TableEngine
from pipeline.train.table.sharded import ShardedTable
from pipeline.train.table.softmax import ShardedFullSoftmax
from pipeline.world import World


def build_engine(recipe: Recipe, dataset: Dataset, world: World) -> Engine:
    """A new model's engine; all ranks build it together."""
    config = recipe.train
    torch.manual_seed(config.seed)
    items = dataset.manifest.catalogue_size
    micro = micro_steps(world.world_size, recipe.data.lanes)
    if config.table.home == "dense":
        model = models.build(recipe.model, items)
        return _trunk(model, loss_of(model, config.loss, dataset, world), config, world, micro)
    model = models.build(recipe.model, 1)  # its table is of no use
    fetched = take_table_out(model, items)
    if config.precision == "bf16":
        fetched.to_dtype(torch.bfloat16)
    table = ShardedTable(
        fetched,
        config.table,
        config.optimizer,
        world,
        seed=config.seed,
        start=partial(model.start_rows, catalogue_size=items),
        averaged=world.world_size if config.engine == "deepspeed" else 1,
    )
    loss: Loss
    if config.loss.name == "full_softmax":
        loss = ShardedFullSoftmax(model, table, world)
    else:
        loss = loss_of(model, config.loss, dataset, world)
    return TableEngine(_trunk(model, loss, config, world, micro), loss, table, config, world)


def _trunk(
    model: SequentialModel, loss: Loss, config: TrainConfig, world: World, micro: int
) -> Engine:
    """The engine of all parameters that the model has."""
    if config.engine == "torch":
        return TorchEngine(model, loss, config, world)
    from pipeline.train.zero import DeepSpeedEngine

    return DeepSpeedEngine(model, loss, config, world, micro)
