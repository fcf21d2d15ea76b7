"""The sampled losses through the C++ kernel (sampled.cpp)."""

from collections.abc import Callable
from functools import partial

import torch

from models.ops import extension, precision
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
    return rounded(make, hidden, rows, bias, targets)


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
    return rounded(make, hidden, rows, bias, targets)


def rounded(
    make: Callable[..., torch.Tensor],
    hidden: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
) -> torch.Tensor:
    """The loss of factors as narrow as ``precision.factors`` has them."""
    dtype = precision.factors(hidden, rows)
    make = partial(make, narrow=dtype == torch.bfloat16)
    return function.loss(make, hidden.to(dtype), rows.to(dtype), bias, targets)


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
    narrow: bool,
) -> torch.Tensor:
    """See ``function.Pass``; narrow: hidden and rows hold bf16 values."""
    total = torch.zeros((), dtype=torch.float64)
    sizes = (*hidden.shape, negatives.shape[1], block_tokens, int(narrow))
    made = gradients or (None, None, None)
    extension.call(name, hidden, rows, bias, targets, negatives, *settings, *sizes, total, *made)
    return total.float()
