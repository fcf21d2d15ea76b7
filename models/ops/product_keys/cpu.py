"""The best slots through the C++ kernel (product_keys.cpp)."""

import torch

from models.ops import extension


def select(halves: torch.Tensor, k: int) -> torch.Tensor:
    """The slots ``[T, h, k]``, best first, from the halves' fp32 scores ``[T, h, 2, n]``."""
    tokens, heads, _, n = halves.shape
    slots = torch.empty(tokens, heads, k, dtype=torch.int64)
    extension.call("product_keys_select", halves.contiguous(), slots, tokens * heads, n, k)
    return slots
