"""The loss of a recipe, with what it has to know of the data."""

import torch

from models import SequentialModel
from models.losses import Loss, LossConfig, build_loss
from pipeline.errors import LonghaulError
from pipeline.evaluate.baselines import popularity
from pipeline.manifest import Dataset
from pipeline.world import World


def loss_of(model: SequentialModel, config: LossConfig, dataset: Dataset, world: World) -> Loss:
    """The loss around ``model``; all ranks ask for it together. LonghaulError where it does not
    fit the data."""
    counts = None
    if config.needs_popularity:
        counts = torch.from_numpy(popularity(dataset, world).counts)
    try:
        return build_loss(model, config, counts)
    except ValueError as error:
        raise LonghaulError(f"train.loss: {error}") from error
