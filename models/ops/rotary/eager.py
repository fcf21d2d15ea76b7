"""Rotary position encoding in eager torch."""

import math

import torch


def rotate(x: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    """Pairs of columns turned by their angles; ``[T, D]`` -> ``[T, D]``."""
    wide = torch.promote_types(x.dtype, torch.float32)
    angle = angles(positions, x.shape[1] // 2, base).to(wide)
    cos, sin = angle.cos(), angle.sin()
    first, second = x.to(wide).unflatten(1, (-1, 2)).unbind(2)
    turned = torch.stack((first * cos - second * sin, first * sin + second * cos), dim=2)
    return turned.flatten(1).to(x.dtype)


def angles(positions: torch.Tensor, pairs: int, base: float) -> torch.Tensor:
    """positions base^(-i / pairs) up to whole turns; fp64 ``[T, pairs]``.

    Whole turns are taken off in fp64: of an angle of thousands, fp32 keeps only few digits.
    """
    pair = torch.arange(pairs, dtype=torch.float64, device=positions.device)
    turns = positions[:, None] * (base ** (-pair / pairs) / (2 * math.pi))
    return (turns - turns.floor()) * (2 * math.pi)
