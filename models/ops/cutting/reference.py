"""What cutting computes, by index arithmetic."""

import torch


def cut(
    events: torch.Tensor, begin: torch.Tensor, length: torch.Tensor, bos: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``cut_segments``."""
    ends = length.cumsum(0)
    first = ends - length  # where each segment begins in the batch
    wide = events.to(torch.int64)
    place = torch.arange(int(length.sum())) + torch.repeat_interleave(begin - first, length)
    items = wide[place - 1]  # of a bos segment's first place: another user's event, or the last
    items[first[bos & (length > 0)]] = 0
    return items, wide[place]
