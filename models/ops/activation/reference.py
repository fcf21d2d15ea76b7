"""Bias, GELU and dropout as three plain steps."""

import torch
from torch.nn import functional

from models.ops.masks import reference as masks


def gelu(x: torch.Tensor, bias: torch.Tensor, p: float, seed: torch.Tensor | None) -> torch.Tensor:
    """dropout(gelu(x + bias)); no dropout where seed is None."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return masks.apply(functional.gelu(x.to(wide) + bias.to(wide)), p, seed).to(x.dtype)
