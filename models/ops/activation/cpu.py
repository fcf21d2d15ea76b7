"""dropout(gelu(x + bias)) through the C++ kernel (activation.cpp)."""

from typing import Any

import torch

from models.ops import extension, masks


def gelu(x: torch.Tensor, bias: torch.Tensor, p: float, seed: torch.Tensor | None) -> torch.Tensor:
    """dropout(gelu(x + bias)); no dropout where seed is None."""
    mask = masks.draw_bits(x, p, seed)
    y: torch.Tensor = Gelu.apply(x, bias.float(), mask)
    return y


class Gelu(torch.autograd.Function):
    """Keeps the inputs and one mask bit an element; the slope is made again for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bias: torch.Tensor, mask: masks.Bits) -> torch.Tensor:
        x, bias = x.contiguous(), bias.contiguous()
        columns = x.shape[-1]
        rows = x.numel() // columns
        y = torch.empty_like(x)
        code = extension.DTYPE_CODES[x.dtype]
        extension.call("activation_forward", code, x, bias, y, rows, columns, *mask)
        ctx.save_for_backward(x, bias, mask.bits)
        ctx.scale = mask.scale
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, bias, mask = ctx.saved_tensors
        dy = dy.contiguous()
        columns = x.shape[-1]
        rows = x.numel() // columns
        dx, dbias = torch.empty_like(x), torch.empty_like(bias)
        code = extension.DTYPE_CODES[x.dtype]
        arguments = (dy, x, bias, dx, dbias, rows, columns)
        extension.call("activation_backward", code, *arguments, mask, ctx.scale)
        return dx, dbias, None
