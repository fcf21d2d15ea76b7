"""LayerNorm(residual + dropout(x)) through the C++ kernel (norm.cpp).

Nothing is kept but the inputs, one mask bit an element and two numbers a row: the sum is made
again in the backward pass, which costs less than writing and reading it.
"""

from typing import Any

import torch

from models.ops import extension, masks


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
    mask = masks.draw_bits(x, p, seed)
    y: torch.Tensor = AddNorm.apply(x, residual, weight.float(), bias.float(), eps, mask)
    return y


class AddNorm(torch.autograd.Function):
    """The fused forward and backward passes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
        mask: masks.Bits,
    ) -> torch.Tensor:
        x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
        residual = None if residual is None else residual.contiguous()
        columns = x.shape[-1]
        rows = x.numel() // columns
        y = torch.empty_like(x)
        statistics = torch.empty(rows, 2)
        code = extension.DTYPE_CODES[x.dtype]
        tensors = (x, residual, weight, bias, y, statistics)
        extension.call("norm_forward", code, *tensors, rows, columns, float(eps), *mask)
        ctx.save_for_backward(x, residual, weight, statistics, mask.bits)
        ctx.scale = mask.scale
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, residual, weight, statistics, mask = ctx.saved_tensors
        dy = dy.contiguous()
        columns = x.shape[-1]
        rows = x.numel() // columns
        dx = torch.empty_like(x)
        dresidual = None if residual is None else torch.empty_like(x)
        dweight, dbias = torch.empty_like(weight), torch.empty_like(weight)
        code = extension.DTYPE_CODES[x.dtype]
        tensors = (dy, x, residual, weight, statistics, dx, dresidual, dweight, dbias)
        extension.call("norm_backward", code, *tensors, rows, columns, mask, ctx.scale)
        return dx, dresidual, dweight, dbias, None, None
