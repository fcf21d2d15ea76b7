"""fp32 linear maps in training with 512-bit vectors on every CPU that has them: products by weights
through oneDNN, the gradients of weight and bias, sums over many rows, by wide.cpp. torch's own way
is MKL, which uses such vectors on Intel's alone: half the speed on AMD's."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from models.ops import extension

LEAST_ROWS = 256  # below, the call itself costs more than it saves


def serves(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether this is a training step's product of fp32 matrices on such a CPU."""
    return (
        torch.is_grad_enabled()
        and (x.requires_grad or weight.requires_grad)
        and not torch.compiler.is_compiling()  # asked before the rows, which an export leaves open
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.dim() == 2
        and len(x) >= LEAST_ROWS
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
    )


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x Wᵀ + b; x ``[T, in]``."""
    y: torch.Tensor = Linear.apply(x, weight, bias)
    return y


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x Wᵀ + b, without gradient."""
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def gradients(
    dy: torch.Tensor, x: torch.Tensor, bias: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """dyᵀ x and, if asked for, the sum of dy over its rows; both contiguous, ``[T, out or in]``."""
    dweight = x.new_empty(dy.shape[1], x.shape[1])
    dbias = x.new_empty(dy.shape[1]) if bias else None
    arguments = (dy, x, len(x), *dweight.shape, dweight, dbias)
    if extension.available() and not extension.call("linear_gradients", *arguments):
        return dweight, dbias
    return dy.T @ x, dy.sum(0) if bias else None  # no kernels, or widths that they do not know


class Linear(torch.autograd.Function):
    """Keeps its operands; `product` and `gradients` do the rest."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted, dy = ctx.needs_input_grad, dy.contiguous()
        dx = product(dy, weight.T, None) if wanted[0] else None
        if not wanted[1]:
            return dx, None, dy.sum(0) if wanted[2] else None
        return dx, *gradients(dy, x.contiguous(), wanted[2])
