"""Rotary position encoding."""

import torch

from models.ops.rotary import eager


def rotate(x: torch.Tensor, positions: torch.Tensor, base: float = 10000.0) -> torch.Tensor:
    """Turns the adjacent columns 2i and 2i + 1 of x by the angle positions base^(-i / (D / 2)).

    x: ``[T, D]``, D even: the full width, before any split into heads; positions: int64
    ``[T]``, of any size. Returns ``[T, D]`` in the dtype of x, computed in fp32 (fp64 for fp64).
    Gradient: x. ValueError for shapes or dtypes that do not fit.

    Source: RoFormer (Su et al., 2021), over the full width as in RecGRELA (2025).
    """
    if x.dim() != 2 or x.shape[1] % 2:
        raise ValueError(f"x must be [T, D], D even, got {tuple(x.shape)}")
    if positions.shape != x.shape[:1] or positions.dtype != torch.int64:
        raise ValueError(
            f"positions must be int64 [{len(x)}], got {positions.dtype} {tuple(positions.shape)}"
        )
    if not base > 0:
        raise ValueError(f"base must be positive, got {base}")
    return eager.rotate(x, positions, base)
