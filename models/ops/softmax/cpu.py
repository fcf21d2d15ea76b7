"""The full softmax loss through the C++ kernel (softmax.cpp)."""

from typing import Any

import torch

from models.ops import extension, precision

CHUNK, ROW_WALK_FLOATS = 96, 4 << 20  # of softmax.cpp


def makes_scores_twice(classes: int, width: int) -> bool:
    """Whether there are too many classes to keep a chunk's terms, so that they are made again."""
    return classes * (CHUNK + width) > ROW_WALK_FLOATS


def loss(
    hidden: torch.Tensor, table: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """The fp32 sum of the losses; see ``full_softmax_loss``."""
    dtype = precision.factors(hidden, table)
    wide_bias = None if bias is None else bias.float()
    leaves = [tensor for tensor in (hidden, table, bias) if tensor is not None]
    train = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in leaves)
    rounded = hidden.to(dtype).float(), table.to(dtype).float()
    narrow = dtype == torch.bfloat16
    total: torch.Tensor = Loss.apply(*rounded, wide_bias, targets, narrow, train)
    return total


class Loss(torch.autograd.Function):
    """Makes the gradients with the loss, where training, and keeps only them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        table: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        narrow: bool,
        train: bool,
    ) -> torch.Tensor:
        hidden, table, targets = hidden.contiguous(), table.contiguous(), targets.contiguous()
        bias = None if bias is None else bias.contiguous()
        gradients: tuple[torch.Tensor | None, ...] = (None, None, None)
        if train:
            gradients = (
                torch.zeros_like(hidden),
                torch.empty_like(table),
                table.new_empty(len(table)),
            )
        total = torch.zeros((), dtype=torch.float64)
        sizes = (len(hidden), *table.shape, int(narrow))
        extension.call("softmax_loss", hidden, table, bias, targets, *sizes, total, *gradients)
        ctx.save_for_backward(*gradients)
        return total.float()

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad[:3], strict=True)
        scaled = (gradient * scale if needed else None for gradient, needed in wanted)
        return *scaled, None, None, None
