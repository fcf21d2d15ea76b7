"""The sampled losses in plain torch, a chunk of tokens at a time."""

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from models.ops.lookup.eager import add_rows_
from models.ops.sampled import function

CHUNK_FLOATS = {"cpu": 1 << 20, "cuda": 64 << 20}  # logits held at a time

Terms = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""Logits ``[k, n]`` and own scores ``[k]`` to losses ``[k]``, the gradient of the logits and the
negated one of the own scores."""


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
    make = partial(walk, negatives, log_weights, block_tokens, softmax_terms)
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
    terms = partial(binary_terms, positive, 1 / (negatives.shape[1] + 1))
    make = partial(walk, negatives, None, block_tokens, terms)
    return function.loss(make, hidden, rows, bias, targets)


def softmax_terms(
    logits: torch.Tensor, own: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See ``Terms``."""
    best = torch.maximum(own, logits.amax(1))
    shares = (logits - best[:, None]).exp_()
    others = shares.sum(1)
    total = others + (own - best).exp()
    return best + total.log() - own, shares.div_(total[:, None]), others / total


def binary_terms(
    positive: float, scale: float, logits: torch.Tensor, own: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See ``Terms``."""
    loss = -positive * functional.logsigmoid(own) - functional.logsigmoid(-logits).sum(1)
    return scale * loss, scale * logits.sigmoid(), scale * positive * (-own).sigmoid()


def walk(
    negatives: torch.Tensor,
    log_weights: torch.Tensor | None,
    block_tokens: int,
    terms: Terms,
    hidden: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    gradients: function.Gradients | None,
) -> torch.Tensor:
    """See ``function.Pass``."""
    chunk = max(1, CHUNK_FLOATS.get(hidden.device.type, 1 << 20) // negatives.shape[1])
    total = hidden.new_zeros(())
    # All arithmetic is wide, whatever a caller's autocast would have.
    with torch.autocast(hidden.device.type, enabled=False):
        for block, begin in enumerate(range(0, len(hidden), block_tokens)):
            end = min(len(hidden), begin + block_tokens)
            chosen = negatives[block]
            added = hidden.new_zeros(len(chosen)) if bias is None else bias[chosen]
            if log_weights is not None:
                added = added + log_weights[block].to(hidden.dtype)
            for first in range(begin, end, chunk):
                part = slice(first, min(end, first + chunk))
                h, target = hidden[part], targets[part]
                trained, target = target >= 0, target.clamp(min=0)
                w, others = rows[target], rows[chosen]
                own = (h * w).sum(1)
                own = own if bias is None else own + bias[target]
                logits = torch.addmm(added, h, others.T)
                logits.masked_fill_(chosen == target[:, None], float("-inf"))
                losses, push, pull = terms(logits, own)
                total = total + losses.where(trained, 0).sum()
                if gradients is None:
                    continue
                push, pull = push * trained[:, None], pull * trained
                dhidden, drows, dbias = gradients
                dhidden[part] = push @ others - pull[:, None] * w
                add_rows_(drows, chosen, push.T @ h)
                add_rows_(drows, target, -pull[:, None] * h)
                add_rows_(dbias, chosen, push.sum(0))
                add_rows_(dbias, target, -pull)
    return total
