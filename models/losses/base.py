"""What every loss offers, and the negatives it may draw."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import nn

from models.base import SequentialModel
from models.batch import PackedBatch
from models.ops import gpu


@dataclass(frozen=True)
class Drawn:
    """The negatives of a micro-batch, ``n`` for each of its ``B`` blocks of tokens.

    items: int64 ``[B, n]``, item ids (an item may occur twice). log_weights: fp32 ``[B, n]``, the
    log of what each stands for.
    """

    items: torch.Tensor
    log_weights: torch.Tensor

    def to(self, device: torch.device | str) -> "Drawn":
        """The same on another device."""
        return Drawn(self.items.to(device), self.log_weights.to(device))


class Loss(nn.Module):
    """A loss around its model."""

    def __init__(self, model: SequentialModel) -> None:
        super().__init__()
        self.model = model

    def draw(self, batch: PackedBatch) -> Drawn | None:
        """The random items of a micro-batch, from torch's default CPU generator.

        To be called before anything else of the micro-batch draws from that generator. On the CPU
        if ``batch`` is. None where the loss draws nothing, or there is no target.
        """
        return None

    @abstractmethod
    def items(self, batch: PackedBatch, drawn: Drawn | None) -> torch.Tensor:
        """int64 ``[m]``: the classes the loss needs, targets and negatives, sorted, each once."""

    @abstractmethod
    def forward(self, batch: PackedBatch, drawn: Drawn | None = None) -> torch.Tensor:
        """The SUM of the loss over the batch's targets, fp32 ``[]``.

        drawn: of ``draw`` for this batch; None to draw here.
        """


class SampledLoss(Loss):
    """A loss over targets and shared negatives. block_tokens: None for a whole micro-batch."""

    def __init__(self, model: SequentialModel, block_tokens: int | None) -> None:
        super().__init__(model)
        self._block_tokens = block_tokens

    def draw(self, batch: PackedBatch) -> Drawn | None:
        """See ``Loss.draw``."""
        targets = batch.targets[batch.targets > 0].cpu()
        if len(targets) == 0:
            return None
        blocks = -(-len(batch.targets) // self.block_tokens(batch))
        return self.propose(targets, blocks)

    @abstractmethod
    def propose(self, targets: torch.Tensor, blocks: int) -> Drawn:
        """Negatives for ``blocks`` blocks of a micro-batch with these targets, at least one."""

    @abstractmethod
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
        """The loss, with the arguments of ``ops.sampled_softmax_loss``."""

    def block_tokens(self, batch: PackedBatch) -> int:
        """How many tokens share their negatives."""
        return self._block_tokens or max(1, len(batch.targets))

    def items(self, batch: PackedBatch, drawn: Drawn | None) -> torch.Tensor:
        """See ``Loss.items``."""
        targets = batch.targets[batch.targets > 0]
        negatives = targets[:0] if drawn is None else drawn.items.flatten()
        items: torch.Tensor = torch.cat((targets, negatives)).unique()
        return items

    def forward(self, batch: PackedBatch, drawn: Drawn | None = None) -> torch.Tensor:
        """See ``Loss.forward``."""
        drawn = drawn or self.draw(batch)
        device = batch.targets.device
        if drawn is None:  # no target
            drawn = Drawn(torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, 1))
        drawn = drawn.to(device)
        hidden = self.model.encode(batch)
        if self._takes_whole_table():
            rows, bias = self.model.item_scores()
            own, negatives = batch.targets, drawn.items
        else:
            items = self.items(batch, drawn)
            rows, bias = self.model.item_rows(items)
            own = torch.searchsorted(items, batch.targets)
            negatives = torch.searchsorted(items, drawn.items)
        own = torch.where(batch.target_mask, own, -1)
        return self.compare(
            hidden, rows, bias, own, negatives, drawn.log_weights, self.block_tokens(batch)
        )

    def _takes_whole_table(self) -> bool:
        """Whether items number the rows compared, as a table of the model's own is on a GPU.

        Its gradient is dense in any case, and how many different items there are a GPU would have
        to be asked. On a CPU, and where rows are fetched, few rows are less work than all.
        """
        table = self.model.item_embedding
        return isinstance(table, nn.Embedding) and gpu.serves(table.weight)
