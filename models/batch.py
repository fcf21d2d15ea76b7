"""The packed batch: what every model takes and every stage passes on."""

from dataclasses import dataclass

import torch

from models.ops import spread


@dataclass(frozen=True)
class PackedBatch:
    """Tokens of ``S`` segments back to back, ``T`` in all, without padding.

    items: int64 ``[T]``, the inputs; 1..V, or 0 for the empty history before a first item.
    offsets: int64 ``[S + 1]``; segment ``s`` owns tokens ``offsets[s]`` up to ``offsets[s + 1]``.
    targets: int64 ``[T]``, the item each position predicts; 0 where nothing is predicted.
    """

    items: torch.Tensor
    offsets: torch.Tensor
    targets: torch.Tensor

    @property
    def target_mask(self) -> torch.Tensor:
        """bool ``[T]``: the positions that are trained."""
        return self.targets > 0

    def starts(self) -> torch.Tensor:
        """bool ``[T]``: True at the first token of every (non-empty) segment."""
        # An empty segment begins where the next one does, or behind all tokens.
        first = torch.zeros(len(self.items) + 1, dtype=torch.bool, device=self.items.device)
        return first.index_fill_(0, self.offsets[:-1], True)[:-1]

    def positions(self) -> torch.Tensor:
        """int64 ``[T]``: the place of each token in its segment, from 0."""
        tokens = len(self.items)
        place = torch.arange(tokens, device=self.items.device)
        begins, lengths = self.offsets[:-1], self.offsets.diff()
        return place - torch.repeat_interleave(begins, lengths, output_size=tokens)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """``[S, ...]`` -> ``[T, ...]``: each token gets the row of its segment."""
        return spread(values, self.offsets, len(self.items))

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The batch on another device."""
        return PackedBatch(*(t.to(device) for t in (self.items, self.offsets, self.targets)))
