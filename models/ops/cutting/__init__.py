"""Segments cut out of events that lie back to back: inputs, and what follows each of them."""

import torch

from models.ops import extension
from models.ops.cutting import cpu, reference


def cut_segments(
    events: torch.Tensor, begin: torch.Tensor, length: torch.Tensor, bos: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Items and targets, int64 ``[T]`` each, of ``S`` segments, back to back.

    events: uint32 ``[N]``. begin: int64 ``[S]``, the place of a segment's first target. length:
    int64 ``[S]``, its number of targets; ``T`` is their sum. The input of a target is the event
    before it; where bos, bool ``[S]``, the segment's first input is 0, the empty history. A place
    outside of events is not checked for.
    """
    cut = cpu.cut if extension.available() else reference.cut
    return cut(events, begin, length, bos)
