"""What is minimised: losses over the hidden states of a packed batch.

A loss is a module around the model, so that an engine sees one forward from batch to loss and
gathers what it has sharded. Over part of the catalogue it takes rows of classes only by
``SequentialModel.item_rows``, and tells beforehand which.
"""

import torch

from models.base import SequentialModel
from models.losses.base import Drawn, Loss
from models.losses.config import LossConfig
from models.losses.full_softmax import FullSoftmax
from models.losses.gbce import GBCE
from models.losses.sampled_softmax import SampledSoftmax

__all__ = ["Drawn", "Loss", "LossConfig", "build_loss"]


def build_loss(
    model: SequentialModel, config: LossConfig, popularity: torch.Tensor | None = None
) -> Loss:
    """The loss of a recipe around ``model``.

    popularity: int64 ``[V + 1]`` on the CPU, how often each item occurs in training; needed where
    ``config.needs_popularity``. ValueError where it is missing or does not fit the catalogue.
    """
    if config.name == "sampled_softmax":
        return SampledSoftmax(model, config, popularity)
    if config.name == "gbce":
        return GBCE(model, config)
    return FullSoftmax(model)
