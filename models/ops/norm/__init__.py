"""LayerNorm of a residual plus a dropped-out branch."""

import torch

from models.ops import extension, gpu, masks
from models.ops.norm import cpu, reference


def dropout_add_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    p: float,
    training: bool,
    eps: float = 1e-5,
) -> torch.Tensor:
    """LayerNorm(residual + dropout(x)) over the last dimension.

    x: ``[..., d]``; residual: like x, or None for zero; weight, bias: ``[d]``. Returns x's shape
    in the common dtype of x and residual; computed in fp32 (fp64 for fp64). The mask is a pure
    function of one seed, drawn from the default generator of x's device, and the element's index.
    Gradients: x, residual, weight, bias; the weight gradients are summed in an order that does
    not depend on the number of threads. ValueError for shapes that do not fit.

    Source: the post-norm residual of Vaswani et al., 2017; LayerNorm of Ba et al., 2016.
    """
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must be [..., d], d > 0, got {tuple(x.shape)}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual must be {tuple(x.shape)}, got {tuple(residual.shape)}")
    if weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(
            f"weight and bias must be [{x.shape[-1]}], "
            f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    if residual is not None and residual.dtype != x.dtype:
        common = torch.promote_types(x.dtype, residual.dtype)
        x, residual = x.to(common), residual.to(common)
    seed = masks.draw_seed(x, p, training)
    if gpu.serves(x):
        from models.ops.norm import triton

        return triton.add_norm(x, residual, weight, bias, p, seed, eps)
    compute = cpu.add_norm if extension.serves(x) else reference.add_norm
    return compute(x, residual, weight, bias, p, seed, eps)
