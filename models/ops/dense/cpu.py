"""bf16 linear maps on CPUs without bf16 multiplication: fp32 products of the rounded values."""

from typing import Any

import torch
from torch.nn import functional


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x Wᵀ + b in bf16; operands of another dtype (under autocast) are rounded to bf16 first."""
    operands = (x.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16())
    y: torch.Tensor = Linear.apply(*operands)
    return y


class Linear(torch.autograd.Function):
    """Keeps the bf16 operands, as a bf16 linear would."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        with torch.autocast("cpu", enabled=False):
            wide = None if bias is None else bias.float()
            return functional.linear(x.float(), weight.float(), wide).bfloat16()

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = dweight = dbias = None
        with torch.autocast("cpu", enabled=False):
            wide = dy.float()
            flat = wide.reshape(-1, wide.shape[-1])
            if ctx.needs_input_grad[0]:
                dx = (wide @ weight.float()).bfloat16()
            if ctx.needs_input_grad[1]:
                dweight = (flat.T @ x.reshape(-1, x.shape[-1]).float()).bfloat16()
            if ctx.has_bias and ctx.needs_input_grad[2]:
                dbias = flat.sum(0).bfloat16()
        return dx, dweight, dbias
