"""The convolution one token at a time, in autograd."""

import torch


def convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    reset: torch.Tensor,
    initial: torch.Tensor | None,
) -> torch.Tensor:
    """y like x; shapes as in the dispatching function."""
    wide = torch.promote_types(x.dtype, torch.float32)
    columns, shift = weight.to(wide).T, bias.to(wide)
    # The tokens a weight applies to, the newest last.
    window = torch.zeros_like(columns)
    if initial is not None:
        window = torch.cat((window[:1], initial.to(wide)))
    outputs = []
    for t, row in enumerate(x.to(wide)):
        window = torch.where(reset[t], 0.0, window)
        window = torch.cat((window[1:], row[None]))
        outputs.append(shift + (columns * window).sum(0))
    # Without tokens every input still takes part: each gets a gradient, of zero.
    y = torch.stack(outputs) if outputs else x * shift + window.sum(0) * columns.sum(0)
    return y.to(x.dtype)
