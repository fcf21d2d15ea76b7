"""Cross-entropy over the whole catalogue."""

import torch

from models.batch import PackedBatch
from models.losses.base import Drawn, Loss
from models.ops import full_softmax_loss


class FullSoftmax(Loss):
    """Cross-entropy over the whole catalogue at every target, never holding ``[T, V]`` scores."""

    def items(self, batch: PackedBatch, drawn: Drawn | None) -> torch.Tensor:
        """All there are."""
        classes = self.model.item_embedding.num_embeddings
        return torch.arange(classes, device=batch.targets.device)

    def forward(self, batch: PackedBatch, drawn: Drawn | None = None) -> torch.Tensor:
        """The SUM of the loss over the batch's targets, fp32 ``[]``."""
        hidden = self.model.encode(batch)
        table, bias = self.model.item_scores()
        return full_softmax_loss(hidden, table, bias, batch.targets)
