"""The convolution in eager torch: one shifted and masked product a column of the weight."""

import torch
from torch.nn import functional


def convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, reset: torch.Tensor
) -> torch.Tensor:
    """y like x, summed in fp32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    tokens, columns = x.to(wide), weight.to(wide).unbind(1)
    segment = reset.cumsum(0)
    y = bias.to(wide) + columns[-1] * tokens
    for lag, column in enumerate(reversed(columns[:-1]), start=1):
        same = functional.pad(segment, (lag, 0), value=-1)[: len(x)] == segment
        earlier = functional.pad(tokens, (0, 0, lag, 0))[: len(x)]
        y = y + column * earlier * same[:, None]
    return y.to(x.dtype)
