"""Dropout through the C++ kernel (drop.cpp)."""

import torch

from models.ops import extension, masks
from models.ops.drop import function


def drop(x: torch.Tensor, p: float, seed: torch.Tensor) -> torch.Tensor:
    """x * mask / (1 - p)."""
    return function.drop(apply_mask, x, masks.draw_bits(x, p, seed))


def apply_mask(x: torch.Tensor, bits: torch.Tensor, scale: float) -> torch.Tensor:
    """One kernel call."""
    x = x.contiguous()
    y = torch.empty_like(x)
    code = extension.DTYPE_CODES[x.dtype]
    extension.call("drop_apply", code, x, y, x.numel(), bits, scale)
    return y
