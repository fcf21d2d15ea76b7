"""The recurrence through the C++ kernel (recurrence.cpp)."""

import torch

from models.ops import extension


def forward(
    u: torch.Tensor, decay: torch.Tensor, reset: torch.Tensor, initial: torch.Tensor | None
) -> torch.Tensor:
    """See ``function.Passes``."""
    h = torch.empty_like(u)
    tokens, channels = u.shape[0], u.shape[1] // 2
    code = extension.DTYPE_CODES[u.dtype]
    extension.call("recurrence_forward", code, u, decay, reset, initial, h, tokens, channels)
    return h


def backward(
    dh: torch.Tensor,
    h: torch.Tensor,
    decay: torch.Tensor,
    reset: torch.Tensor,
    initial: torch.Tensor | None,
    dinitial: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``function.Passes``."""
    du = torch.empty_like(h)
    ddecay = torch.zeros(decay.shape, dtype=torch.float64)
    tokens, channels = h.shape[0], h.shape[1] // 2
    code = extension.DTYPE_CODES[h.dtype]
    arguments = (dh, h, decay, reset, initial, du, ddecay, dinitial, tokens, channels)
    extension.call("recurrence_backward", code, *arguments)
    return du, ddecay.float()
