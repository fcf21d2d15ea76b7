"""Bias, GELU and dropout in one pass."""

import torch

from models.ops import extension, gpu, masks
from models.ops.activation import cpu, reference


def bias_gelu_dropout(
    x: torch.Tensor, bias: torch.Tensor, p: float, training: bool
) -> torch.Tensor:
    """dropout(gelu(x + bias)) with the exact, erf-based GELU.

    x: ``[..., d]``; bias: ``[d]``. Returns x's shape and dtype; computed in fp32 (fp64 for fp64).
    The mask is a pure function of one seed, drawn from the default generator of x's device, and
    the element's index in x. Gradients: x, bias; the bias gradient is summed in an order that
    does not depend on the number of threads. ValueError for shapes that do not fit.

    Source: Hendrycks and Gimpel, 2016: gelu(x) = x Φ(x).
    """
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must be [..., d], d > 0, got {tuple(x.shape)}")
    if bias.shape != x.shape[-1:]:
        raise ValueError(f"bias must be [{x.shape[-1]}], got {tuple(bias.shape)}")
    seed = masks.draw_seed(x, p, training)
    if gpu.serves(x):
        from models.ops.activation import triton

        return triton.gelu(x, bias, p, seed)
    compute = cpu.gelu if extension.serves(x) else reference.gelu
    return compute(x, bias, p, seed)
