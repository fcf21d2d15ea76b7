"""Dropout masks as a pure function of (seed, element index).

They have no state and no order of evaluation: a mask depends neither on the number of threads nor
on the form of the operation that uses it. Seeding torch's default generator before the forward
pass fixes every mask.
"""

from typing import NamedTuple

import torch

from models.ops import extension
from models.ops.masks import reference

# Two tiles of 64 elements are drawn together; readers may touch the byte after the last element.
GRAIN = 128
SPARE = 1


class Bits(NamedTuple):
    """A drawn mask for the kernels: one bit an element, and what a kept element is times."""

    bits: torch.Tensor | None
    scale: float


def draw_seed(x: torch.Tensor, p: float, training: bool) -> torch.Tensor | None:
    """One 64-bit seed from the default generator of x's device; None where nothing is dropped.

    ValueError unless p is a probability.
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability must lie in 0..1, got {p}")
    if not training or reference.threshold(p) == 0:
        return None
    return torch.empty((), dtype=torch.int64, device=x.device).random_()


def draw_bits(x: torch.Tensor, p: float, seed: torch.Tensor | None) -> Bits:
    """The mask of x's elements through the C++ kernel (masks.cpp)."""
    if seed is None:
        return Bits(None, 1.0)
    tiles = -(-x.numel() // GRAIN) * GRAIN // reference.TILE
    bits = torch.empty(tiles * reference.TILE // 8 + SPARE, dtype=torch.uint8)
    extension.call("draw_mask", int(seed), reference.threshold(p), bits, tiles)
    return Bits(bits, reference.keep_scale(p))
