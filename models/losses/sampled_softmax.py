"""An estimate of the full softmax from negatives that tokens share.

The full softmax is log Z - s_t with Z = exp s_t + Σ_{i≠t} exp s_i. The sum over the others is
estimated by importance sampling: a negative j weighs w_j = 1 / m(j), where m(j) is how often one
expects to draw it,

    m(i) = n_uniform / (V + 1) + n_popularity c_i / Σ c + n_batch b_i / Σ b

with c_i the training events of an item and b_i its occurrences among the micro-batch's targets.
As draws from several sources are weighed by the sum of their expectations, wherever they come from
(the balance heuristic of Veach & Guibas, 1995), Σ_{j≠t} w_j exp s_j has the wanted sum as its
expectation, whatever the mixture, as long as every item can be drawn. The log of it, and so the
loss, is low by a term of the order 1 / n (Bengio & Senécal, 2008), which vanishes as n grows.

-log m(j) is what is called the logQ correction (Yi et al., 2019). It is often applied to the
target's score too. That treats the target as if it had been drawn: its own term in Z weighs
1 / m(t), so a rare target fills Z with itself and hardly trains, a popular one is told that it is
improbable even where it is certain, and no number of negatives makes it the full softmax. Here the
target, which is always present, is never corrected (as in Khrylchenko et al., 2025).

Class 0, the empty history, is among the classes as it is in the full softmax. Every item counts
one training event more than it has, so that popularity alone reaches every item.
"""

import torch

from models.base import SequentialModel
from models.losses.base import Drawn, SampledLoss
from models.losses.config import LossConfig
from models.ops import sampled_softmax_loss


class SampledSoftmax(SampledLoss):
    """Cross-entropy of each target against an estimate of the whole catalogue.

    popularity: int64 ``[V + 1]``, training events; needed for negatives by popularity.
    """

    def __init__(
        self, model: SequentialModel, config: LossConfig, popularity: torch.Tensor | None
    ) -> None:
        super().__init__(model, config.block_tokens)
        self._config = config
        self._classes = model.item_embedding.num_embeddings
        self._bounds: torch.Tensor | None = None
        if config.popularity:
            if popularity is None or popularity.shape != (self._classes,):
                found = "none" if popularity is None else f"{len(popularity)}"
                raise ValueError(
                    f"negatives by popularity need the counts of {self._classes} classes, not "
                    f"{found}"
                )
            self._bounds = (popularity.cpu().to(torch.int64) + 1).cumsum(0)

    def propose(self, targets: torch.Tensor, blocks: int) -> Drawn:
        """Negatives of all sources, weighed by the mixture."""
        config = self._config
        drawn = [torch.randint(self._classes, (blocks, config.uniform))]
        if self._bounds is not None:
            events = torch.randint(int(self._bounds[-1]), (blocks, config.popularity))
            drawn.append(torch.searchsorted(self._bounds, events, right=True))
        if config.batch:
            drawn.append(targets[torch.randint(len(targets), (blocks, config.batch))])
        items = torch.cat(drawn, 1)
        return Drawn(items, -self.expected(items, targets).log().float())

    def expected(self, items: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """How often a block draws each of ``items``, in expectation: float64, as items.

        targets: int64, those of the micro-batch.
        """
        config = self._config
        times = torch.full(items.shape, config.uniform / self._classes, dtype=torch.float64)
        if self._bounds is not None:
            before = self._bounds[(items - 1).clamp(min=0)].where(items > 0, 0)
            share = (self._bounds[items] - before).double() / float(self._bounds[-1])
            times += config.popularity * share
        if config.batch:
            present, counts = targets.unique(return_counts=True)
            place = torch.searchsorted(present, items).clamp(max=len(present) - 1)
            share = counts[place].where(present[place] == items, 0).double() / len(targets)
            times += config.batch * share
        return times

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
        """See ``ops.sampled_softmax_loss``."""
        return sampled_softmax_loss(
            hidden, rows, bias, targets, negatives, log_weights, block_tokens
        )
