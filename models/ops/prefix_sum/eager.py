"""The running sum in eager torch, by doubling.

After a pass of step s each token holds the sum of the newest 2 s tokens of its segment up to
itself. So a token is added only to what belongs to its segment, and the passes are the logarithm
of the longest segment.
"""

import torch

from models.ops import segments
from models.ops.prefix_sum.reference import empty


def prefix_sum(x: torch.Tensor, reset: torch.Tensor, initial: torch.Tensor | None) -> torch.Tensor:
    """S like x, summed in fp32 or wider."""
    if len(x) == 0:
        return empty(x, initial)
    sums = x.to(torch.promote_types(x.dtype, torch.float32))
    if initial is not None:
        # What flows into the first token is part of its input.
        entering = torch.where(reset[0], 0.0, initial.to(sums.dtype))
        sums = torch.cat((sums[:1] + entering, sums[1:]))
    position = segments.positions(reset)[:, None]
    longest = int(position.max()) + 1
    step = 1
    while step < longest:
        earlier = torch.where(position[step:] >= step, sums[:-step], 0.0)
        sums = torch.cat((sums[:step], sums[step:] + earlier))
        step *= 2
    return sums.to(x.dtype)
