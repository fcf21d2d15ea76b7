"""Losses of targets beside negatives that a block of tokens shares."""

import torch

from models.ops import checks, extension, gpu
from models.ops.sampled import cpu, eager


def sampled_softmax_loss(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    log_weights: torch.Tensor,
    block_tokens: int,
) -> torch.Tensor:
    """The sum over targets of log(exp s_t + Σ_j w_j exp s_j) - s_t.

    s_t is the score ``hidden · row + bias`` of a token's own target, s_j those of the negatives of
    the token's block, w_j their weights. A negative that is the target itself takes no part; one
    that was drawn twice takes part twice.

    hidden: ``[T, d]``; rows: ``[m, d]``, the classes that take part; bias: ``[m]`` or None.
    targets: int64 ``[T]``, a row each, -1 for no target: no loss, no gradient. negatives: int64
    ``[B, n]``, the rows that tokens ``b * block_tokens`` up to ``(b + 1) * block_tokens`` share.
    log_weights: ``[B, n]``, log w_j; it has no gradient.

    Returns a 0-dim tensor, fp32 (fp64 for fp64). Factors of a product stay bf16 where hidden and
    rows are, or autocast rounds them, and the processor multiplies bf16; all sums are fp32. The
    logits of a block are never held together. The gradients of hidden, rows and bias are made in
    the forward pass and scaled in the backward pass. The same thread count gives the same bits.
    ValueError for shapes that do not fit.

    Source: with w = 1 / expected count, importance sampling of the partition function (Bengio &
    Senécal, 2008); the target's own term is exact, as it is not drawn (Khrylchenko et al., 2025).
    """
    check(hidden, rows, bias, targets, negatives, block_tokens)
    if log_weights.shape != negatives.shape:
        raise ValueError(f"log_weights must be {list(negatives.shape)}, as negatives")
    if nothing_to_train(targets, negatives):
        return nothing(hidden, rows, bias)
    if gpu.serves(hidden, rows, bias):
        from models.ops.sampled import triton

        return triton.softmax(hidden, rows, bias, targets, negatives, log_weights, block_tokens)
    compute = cpu.softmax if extension.serves(hidden, rows, bias) else eager.softmax
    return compute(hidden, rows, bias, targets, negatives, log_weights, block_tokens)


def sampled_binary_loss(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    positive: float,
    block_tokens: int,
) -> torch.Tensor:
    """The sum over targets of -(positive log σ(s_t) + Σ_j log(1 - σ(s_j))) / (n + 1).

    Arguments, result and errors as of ``sampled_softmax_loss``; positive: the weight of a target.

    Source: with positive = 1 the binary cross-entropy of SASRec (Kang & McAuley, 2018); with a
    smaller one gBCE (Petrov & Macdonald, 2023).
    """
    check(hidden, rows, bias, targets, negatives, block_tokens)
    if nothing_to_train(targets, negatives):
        return nothing(hidden, rows, bias)
    if gpu.serves(hidden, rows, bias):
        from models.ops.sampled import triton

        return triton.binary(hidden, rows, bias, targets, negatives, positive, block_tokens)
    compute = cpu.binary if extension.serves(hidden, rows, bias) else eager.binary
    return compute(hidden, rows, bias, targets, negatives, positive, block_tokens)


def nothing_to_train(targets: torch.Tensor, negatives: torch.Tensor) -> bool:
    """Whether no token has a target.

    A GPU is not asked. Where there are no blocks of negatives there can be no targets either, and
    otherwise the loss of no targets comes out as it should.
    """
    if targets.is_cuda or gpu.interpreting:
        return len(negatives) == 0
    return not bool((targets >= 0).any())


def nothing(hidden: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A zero that every input takes part in, so that all get a gradient."""
    zero = hidden.sum() * 0 + rows.sum() * 0
    zero = zero if bias is None else zero + bias.sum() * 0
    return zero.to(torch.promote_types(hidden.dtype, torch.float32))


def check(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    block_tokens: int,
) -> None:
    """ValueError, in one line, for arguments that do not fit together."""
    if hidden.dim() != 2 or rows.dim() != 2 or hidden.shape[1] != rows.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and rows {tuple(rows.shape)} do not fit")
    if bias is not None and bias.shape != rows.shape[:1]:
        raise ValueError(f"bias must be [{len(rows)}], got {tuple(bias.shape)}")
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(f"targets must be int64 [{len(hidden)}], got {tuple(targets.shape)}")
    if negatives.dim() != 2 or negatives.dtype != torch.int64:
        raise ValueError(f"negatives must be int64 [blocks, n], got {tuple(negatives.shape)}")
    if nothing_to_train(targets, negatives):
        checks.require((targets < 0).all(), "targets without a block of negatives")
        return
    if block_tokens < 1 or len(negatives) * block_tokens < len(hidden):
        raise ValueError(
            f"{len(negatives)} blocks of {block_tokens} tokens do not hold {len(hidden)} tokens"
        )
    for name, places, least in (("targets", targets, -1), ("negatives", negatives, 0)):
        known = ((places >= least) & (places < len(rows))).all()
        checks.require(known, f"{name} must lie in {least}..{len(rows) - 1}")
