"""Dropout through the C++ kernel (drop.cpp)."""

from typing import Any

import torch

from models.ops import extension, masks


def drop(x: torch.Tensor, p: float, seed: torch.Tensor) -> torch.Tensor:
    """x * mask / (1 - p)."""
    y: torch.Tensor = Drop.apply(x, *masks.draw_bits(x, p, seed))
    return y


def apply_mask(x: torch.Tensor, bits: torch.Tensor, scale: float) -> torch.Tensor:
    """One kernel call."""
    x = x.contiguous()
    y = torch.empty_like(x)
    code = extension.DTYPE_CODES[x.dtype]
    extension.call("drop_apply", code, x, y, x.numel(), bits, scale)
    return y


class Drop(torch.autograd.Function):
    """Keeps one bit an element."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bits: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.save_for_backward(bits)
        ctx.scale = scale
        return apply_mask(x, bits, scale)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (bits,) = ctx.saved_tensors
        return apply_mask(dy, bits, ctx.scale), None, None
