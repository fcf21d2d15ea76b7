"""The sampled losses with the logits of all tokens at once."""

import torch
from torch.nn import functional


def softmax(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    log_weights: torch.Tensor,
    block_tokens: int,
) -> torch.Tensor:
    """The sum over targets of log(exp s_t + Σ_j w_j exp s_j) - s_t."""
    own, others, block = scores(hidden, rows, bias, targets, negatives, block_tokens)
    others = others + log_weights[block].to(others.dtype)
    return (torch.cat((own[:, None], others), 1).logsumexp(1) - own).sum()


def binary(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    positive: float,
    block_tokens: int,
) -> torch.Tensor:
    """The sum over targets of -(positive log σ(s_t) + Σ_j log(1 - σ(s_j))) / (n + 1)."""
    own, others, _ = scores(hidden, rows, bias, targets, negatives, block_tokens)
    loss = -positive * functional.logsigmoid(own).sum() - functional.logsigmoid(-others).sum()
    return loss / (negatives.shape[1] + 1)


def scores(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    block_tokens: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the k tokens with a target: own scores ``[k]``, those of the negatives ``[k, n]`` with
    -inf for the target itself, and the blocks ``[k]``."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    trained = (targets >= 0).nonzero()[:, 0]
    every = hidden[trained].to(wide) @ rows.to(wide).T
    if bias is not None:
        every = every + bias.to(wide)
    block = trained // block_tokens
    own = every.gather(1, targets[trained, None])
    others = every.gather(1, negatives[block])
    others = others.masked_fill(negatives[block] == targets[trained, None], float("-inf"))
    return own[:, 0], others, block
