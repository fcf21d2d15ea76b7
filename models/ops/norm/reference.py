"""Dropout, addition and LayerNorm as three plain steps."""

import torch
from torch.nn import functional

from models.ops.masks import reference as masks


def add_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    p: float,
    seed: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """LayerNorm(residual + dropout(x)); no dropout where seed is None."""
    wide = torch.promote_types(x.dtype, torch.float32)
    total = masks.apply(x.to(wide), p, seed)
    if residual is not None:
        total = total + residual.to(wide)
    y = functional.layer_norm(total, x.shape[-1:], weight.to(wide), bias.to(wide), eps)
    return y.to(x.dtype)
