"""The full softmax loss with all logits at once."""

import torch
from torch.nn import functional


def loss(
    hidden: torch.Tensor, table: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """The sum over targets of -log softmax(hidden tableᵀ + bias)[target]; 0 is no target."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits = hidden.to(wide) @ table.to(wide).T
    if bias is not None:
        logits = logits + bias.to(wide)
    total = functional.cross_entropy(logits, targets, ignore_index=0, reduction="sum")
    return total if wide == torch.float64 else total.float()
