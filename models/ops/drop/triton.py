"""Dropout through a Triton kernel."""

import torch
import triton
import triton.language as tl

from models.ops.drop import function
from models.ops.masks import triton as masks

BLOCK = 2048  # elements a program


def drop(x: torch.Tensor, p: float, seed: torch.Tensor) -> torch.Tensor:
    """x * mask / (1 - p)."""
    return function.drop(apply_mask, x, masks.draw_bits(x, p, seed))


def apply_mask(x: torch.Tensor, bits: torch.Tensor, scale: float) -> torch.Tensor:
    """One kernel call."""
    x = x.contiguous()
    y = torch.empty_like(x)
    if x.numel():
        kernel[triton.cdiv(x.numel(), BLOCK),](x, y, bits, scale, x.numel(), BLOCK=BLOCK)
    return y


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
