"""Cross-entropy over the whole catalogue."""

import torch

from models.ops import checks, extension, gpu
from models.ops.softmax import cpu, eager

MOST_TRITON_WIDTH = 128  # beyond, making the logits anew costs more than keeping some of them


def full_softmax_loss(
    hidden: torch.Tensor, table: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """The sum over targets of -log softmax(hidden tableᵀ + bias)[target].

    hidden: ``[T, d]``; table: ``[C, d]``; bias: ``[C]`` or None; targets: int64 ``[T]`` in
    1..C-1, where 0 is no target: no loss, no gradient (class 0 is still in the softmax).
    Returns a 0-dim tensor, fp32 (fp64 for fp64). Factors of a product stay bf16 where hidden and
    table are, or autocast rounds them, and the processor multiplies bf16; all sums are fp32.
    The ``[T, C]`` logits are never held: memory beyond the gradients is bounded. The gradients
    of hidden, table and bias are made in the forward pass and scaled in the backward pass.
    The same thread count gives the same bits. ValueError for shapes or targets that do not fit.

    Source: softmax cross-entropy of all items, as trained by LRURec (Yue et al., 2024).
    """
    if hidden.dim() != 2 or table.dim() != 2 or hidden.shape[1] != table.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and table {tuple(table.shape)} do not fit")
    if bias is not None and bias.shape != table.shape[:1]:
        raise ValueError(f"bias must be [{len(table)}], got {tuple(bias.shape)}")
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(f"targets must be int64 [{len(hidden)}], got {tuple(targets.shape)}")
    known = ((targets >= 0) & (targets < len(table))).all()
    checks.require(known, f"targets must lie in 0..{len(table) - 1}")
    if hidden.shape[1] <= MOST_TRITON_WIDTH and gpu.serves(hidden, table, bias):
        from models.ops.softmax import triton

        return triton.loss(hidden, table, bias, targets)
    compute = cpu.loss if extension.serves(hidden, table, bias) else eager.loss
    return compute(hidden, table, bias, targets)
