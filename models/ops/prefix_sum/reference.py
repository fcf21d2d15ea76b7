"""The running sum one token at a time, in autograd."""

import torch


def prefix_sum(x: torch.Tensor, reset: torch.Tensor, initial: torch.Tensor | None) -> torch.Tensor:
    """S_t = x_t + (1 - reset_t) S_{t-1}; shapes as in the dispatching function."""
    wide = torch.promote_types(x.dtype, torch.float32)
    state = torch.zeros(x.shape[1], dtype=wide, device=x.device)
    if initial is not None:
        state = initial.to(wide)
    sums = []
    for t, row in enumerate(x.to(wide)):
        state = row + torch.where(reset[t], 0.0, state)
        sums.append(state)
    return torch.stack(sums).to(x.dtype) if sums else empty(x, initial)


def empty(x: torch.Tensor, initial: torch.Tensor | None) -> torch.Tensor:
    """No tokens, but a result that every input takes part in: each gets a gradient, of zero."""
    return x.clone() if initial is None else (x + initial).to(x.dtype)
