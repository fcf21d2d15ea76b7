"""gBCE: binary cross-entropy whose positives weigh less, so that scores are not overconfident.

Per target -(β log σ(s_t) + Σ_j log(1 - σ(s_j))) / (k + 1) with k negatives,
β = α (t (1 - 1/α) + 1/α) and α = k / (V - 1), the rate at which negatives are sampled (Petrov &
Macdonald, gSASRec, 2023). t = 0 is plain binary cross-entropy; at t = 1 a score's sigmoid is the
probability of the item.

The paper draws k negatives for every token. Here the tokens of a block share theirs: each token's
negatives are still k uniform draws, so the expected loss and gradient are the same. What they gain
in common is variance between tokens, and what they save is gathering k rows a token, which is
hundreds of times the cost of a matrix product.

Ours: s is the model's score plus log(β / k), at which the mean of all gradients of scores is zero.
Without it a model that begins with scores of about zero, a sigmoid of one half, has to bring all of
them down first. With one table for inputs and classes it does so by turning all rows the same way,
and learns nothing but popularity for many epochs. A constant changes no ranking (after the prior of
Lin et al., focal loss, 2017).
"""

import math

import torch

from models.base import SequentialModel
from models.losses.base import Drawn, SampledLoss
from models.losses.config import LossConfig
from models.ops import sampled_binary_loss


class GBCE(SampledLoss):
    """gBCE of each target against uniform negatives."""

    def __init__(self, model: SequentialModel, config: LossConfig) -> None:
        super().__init__(model, config.block_tokens)
        assert config.t is not None
        self._negatives = config.uniform
        self._items = model.item_embedding.num_embeddings - 1
        if config.uniform >= self._items:
            raise ValueError(
                f"gbce with {config.uniform} negatives needs more than {self._items} items"
            )
        alpha = config.uniform / (self._items - 1)
        self.positive = alpha * (config.t * (1 - 1 / alpha) + 1 / alpha)
        self.prior = math.log(self.positive / self._negatives)

    def propose(self, targets: torch.Tensor, blocks: int) -> Drawn:
        """Items 1..V, all as likely."""
        items = torch.randint(1, self._items + 1, (blocks, self._negatives))
        return Drawn(items, torch.zeros(items.shape))

    def compare(
        self,
        hidden: torch.Tensor,
        rows: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        negatives: torch.Tensor,
        log_weights: torch.Tensor,
        block_tokens: int,
    ) -> torch.Tensor:
        """See ``ops.sampled_binary_loss``; negatives do not weigh differently."""
        wide = torch.promote_types(rows.dtype, torch.float32)  # bf16 would round a bias beside it
        begun = rows.new_zeros(len(rows), dtype=wide) if bias is None else bias.to(wide)
        return sampled_binary_loss(
            hidden, rows, begun + self.prior, targets, negatives, self.positive, block_tokens
        )
