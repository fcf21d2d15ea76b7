"""The convolution through the C++ kernel (convolution.cpp)."""

from typing import Any

import torch

from models.ops import extension


def convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, reset: torch.Tensor
) -> torch.Tensor:
    """y for fp32 or bf16 x; the parameters are taken in fp32."""
    y: torch.Tensor = Convolution.apply(x, weight.float().T, bias.float(), reset)
    return y


class Convolution(torch.autograd.Function):
    """Keeps the inputs. The weight is ``[w, d]`` here: a row holds what one vector needs."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, reset: torch.Tensor
    ) -> torch.Tensor:
        x, weight, bias, reset = (t.contiguous() for t in (x, weight, bias, reset))
        y = torch.empty_like(x)
        code = extension.DTYPE_CODES[x.dtype]
        extension.call(
            "convolution_forward", code, x, weight, bias, reset, y, *x.shape, len(weight)
        )
        ctx.save_for_backward(x, weight, reset)
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, reset = ctx.saved_tensors
        dy = dy.contiguous()
        dx, dweight = torch.empty_like(x), torch.empty_like(weight)
        dbias = torch.empty_like(weight[0])
        code = extension.DTYPE_CODES[x.dtype]
        arguments = (dy, x, weight, reset, dx, dweight, dbias, *x.shape, len(weight))
        extension.call("convolution_backward", code, *arguments)
        return dx, dweight, dbias, None
