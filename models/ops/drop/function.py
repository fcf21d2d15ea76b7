"""Dropout whose gradient takes the mask that the values took, whatever applies it."""

from collections.abc import Callable
from typing import Any

import torch

from models.ops.masks import Bits

Apply = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
"""x, mask bits, scale -> x * mask * scale."""


def drop(apply_mask: Apply, x: torch.Tensor, mask: Bits) -> torch.Tensor:
    """x * mask / (1 - p)."""
    y: torch.Tensor = Drop.apply(x, *mask, apply_mask)
    return y


class Drop(torch.autograd.Function):
    """Keeps one bit an element."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, bits: torch.Tensor, scale: float, apply_mask: Apply
    ) -> torch.Tensor:
        ctx.save_for_backward(bits)
        ctx.scale, ctx.apply_mask = scale, apply_mask
        return apply_mask(x, bits, scale)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (bits,) = ctx.saved_tensors
        return ctx.apply_mask(dy, bits, ctx.scale), None, None, None
