"""Dropout with a stateless mask."""

import torch

from models.ops import extension, gpu, masks
from models.ops.drop import cpu, reference


def dropout(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """x with each element zeroed with chance p, the others scaled by 1 / (1 - p).

    x: any shape; returns the same shape and dtype. The mask is a pure function of one seed, drawn
    from the default generator of x's device, and the element's index in x (see masks/); p is
    rounded to a multiple of 1/65536, and the scale is exact for the rounded value. Without
    training, or at p = 0, x itself. ValueError unless 0 <= p <= 1.

    Source: Srivastava et al., 2014 (inverted form).
    """
    seed = masks.draw_seed(x, p, training)
    if seed is None:
        return x
    if gpu.serves(x):
        from models.ops.drop import triton

        return triton.drop(x, p, seed)
    compute = cpu.drop if extension.serves(x) else reference.drop
    return compute(x, p, seed)
