"""Dropout through a Triton kernel."""

from typing import Any

import torch
import triton
import triton.language as tl

from models.ops.masks import triton as masks

BLOCK = 2048  # elements a program


def drop(x: torch.Tensor, p: float, seed: torch.Tensor) -> torch.Tensor:
    """x * mask / (1 - p)."""
    y: torch.Tensor = Drop.apply(x, *masks.draw_bits(x, p, seed))
    return y


def apply_mask(x: torch.Tensor, bits: torch.Tensor, scale: float) -> torch.Tensor:
    """One kernel call."""
    x = x.contiguous()
    y = torch.empty_like(x)
    if x.numel():
        kernel[triton.cdiv(x.numel(), BLOCK),](x, y, bits, scale, x.numel(), BLOCK=BLOCK)
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


@triton.jit
def kernel(
    x: tl.tensor,
    y: tl.tensor,
    bits: tl.tensor,
    scale: tl.tensor,
    count: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < count
    value = tl.load(x + element, inside, 0.0).to(tl.float32)
    tl.store(y + element, masks.apply(value, bits, scale, element, inside), inside)
