"""The sampled losses with their gradient, over whatever makes both in one pass."""

from typing import Any, Protocol

import torch

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Pass(Protocol):
    """Makes the loss of contiguous fp32 or fp64 inputs and, where asked, adds to gradients."""

    def __call__(
        self,
        hidden: torch.Tensor,
        rows: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        gradients: Gradients | None,
    ) -> torch.Tensor:
        """The loss, 0-dim. gradients: zeros in the shapes of hidden, rows and bias."""


def loss(
    make: Pass,
    hidden: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
) -> torch.Tensor:
    """The loss in fp32 or fp64; narrow inputs are widened (their gradients come back narrow)."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    leaves = [tensor for tensor in (hidden, rows, bias) if tensor is not None]
    train = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in leaves)
    wide_bias = None if bias is None else bias.to(wide)
    total: torch.Tensor = Loss.apply(
        make, hidden.to(wide), rows.to(wide), wide_bias, targets, train
    )
    return total


class Loss(torch.autograd.Function):
    """Makes the gradients with the loss, where training, and keeps only them."""

    @staticmethod
    def forward(
        ctx: Any,
        make: Pass,
        hidden: torch.Tensor,
        rows: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        train: bool,
    ) -> torch.Tensor:
        hidden, rows, targets = hidden.contiguous(), rows.contiguous(), targets.contiguous()
        bias = None if bias is None else bias.contiguous()
        gradients: Gradients | None = None
        if train:
            zeros = rows.new_zeros(len(rows))
            gradients = torch.zeros_like(hidden), torch.zeros_like(rows), zeros
            ctx.save_for_backward(*gradients)
        return make(hidden, rows, bias, targets, gradients)

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad[1:4], strict=True)
        scaled = (gradient * scale if needed else None for gradient, needed in wanted)
        return None, *scaled, None, None
