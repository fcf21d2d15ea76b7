"""The sampled losses through the C++ kernel (sampled.cpp)."""

from functools import partial

import torch

from models.ops import extension
from models.ops.sampled import function


def softmax(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    log_weights: torch.Tensor,
    block_tokens: int,
) -> torch.Tensor:
    """See ``sampled_softmax_loss``."""
    settings = (log_weights.float().contiguous(),)
    make = partial(call, "sampled_softmax_loss", negatives.contiguous(), block_tokens, settings)
    return function.loss(make, hidden, rows, bias, targets)


def binary(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    positive: float,
    block_tokens: int,
) -> torch.Tensor:
    """See ``sampled_binary_loss``."""
    settings = float(positive), 1 / (negatives.shape[1] + 1)
    make = partial(call, "sampled_binary_loss", negatives.contiguous(), block_tokens, settings)
    return function.loss(make, hidden, rows, bias, targets)


def call(
    name: str,
    negatives: torch.Tensor,
    block_tokens: int,
    settings: tuple[torch.Tensor | float, ...],
    hidden: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    gradients: function.Gradients | None,
) -> torch.Tensor:
    """See ``function.Pass``."""
    total = torch.zeros((), dtype=torch.float64)
    sizes = (*hidden.shape, negatives.shape[1], block_tokens)
    made = gradients or (None, None, None)
    extension.call(name, hidden, rows, bias, targets, negatives, *settings, *sizes, total, *made)
    return total.float()
