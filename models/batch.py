"""The packed batch: what every model takes and every stage passes on."""

from dataclasses import dataclass

import torch


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
        first = torch.zeros(len(self.items), dtype=torch.bool, device=self.items.device)
        first[self.offsets[:-1][self.offsets[:-1] < self.offsets[1:]]] = True
        return first

    def positions(self) -> torch.Tensor:
        """int64 ``[T]``: the place of each token in its segment, from 0."""
        place = torch.arange(len(self.items), device=self.items.device)
        return place - torch.repeat_interleave(self.offsets[:-1], self.offsets.diff())

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The batch on another device."""
        return PackedBatch(*(t.to(device) for t in (self.items, self.offsets, self.targets)))
