"""What is minimised: losses over the hidden states of a packed batch."""

import torch
from torch import nn

from models.base import SequentialModel
from models.batch import PackedBatch
from models.ops import full_softmax_loss


class FullSoftmax(nn.Module):
    """Cross-entropy over the whole catalogue at every target, never holding ``[T, V]`` scores.

    A module around the model, so that an engine sees one forward from batch to loss and gathers
    what it has sharded.
    """

    def __init__(self, model: SequentialModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """The SUM of the loss over the batch's targets, fp32 ``[]``."""
        hidden = self.model.encode(batch)
        table, bias = self.model.item_scores()
        return full_softmax_loss(hidden, table, bias, batch.targets)
