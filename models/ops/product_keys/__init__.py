"""Product-key memory: the best of n * n slots for the cost of two times n, and their read."""

import torch
from torch.nn import functional

from models.ops import extension, gpu
from models.ops.product_keys import cpu, eager


def product_key_top(
    query: torch.Tensor, keys: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best of n * n slots for each query, exactly, from its two halves.

    query: ``[T, h, e]``, e even. keys: ``[h, 2, n, e / 2]``. Slot i * n + j of a head has the
    score query[: e / 2] · keys[0, i] + query[e / 2 :] · keys[1, j].

    Returns the scores ``[T, h, k]`` in the dtype of query, falling, and their slots, int64
    ``[T, h, k]``. Of equal scores the lowest slot comes first. Scores are computed in fp32, fp64
    for fp64: slots closer than its rounding may change places. Gradients through the scores:
    query, keys. ValueError for shapes that do not fit and for k outside 1 to n.

    Source: product-key memory (Lample et al., 2019). A sum among the k best has a first term
    among the k best first terms and a second term among the k best second ones.
    """
    check(query, keys, k)
    wide = torch.promote_types(query.dtype, torch.float32)
    halves = half_scores(query.to(wide), keys.to(wide))
    slots = select(halves.detach(), k)
    n = keys.shape[2]
    first, second = halves.unbind(2)
    scores = first.gather(2, slots // n) + second.gather(2, slots % n)
    return scores.to(query.dtype), slots


def half_scores(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The products ``[T, h, 2, n]`` of each half of a query with the keys of its side."""
    with torch.autocast(query.device.type, enabled=False):
        return torch.einsum("thce,hcne->thcn", query.unflatten(2, (2, -1)), keys)


def select(halves: torch.Tensor, k: int) -> torch.Tensor:
    """The slots, best first, from the two halves' scores."""
    if gpu.serves(halves):
        from models.ops.product_keys import triton

        return triton.select(halves, k)
    if extension.serves(halves):
        return cpu.select(halves, k)
    return eager.select(halves, k)


def memory_read(weights: torch.Tensor, slots: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Σ_i weights[t, i] table[slots[t, i]].

    weights: ``[T, m]``; slots: int64 ``[T, m]``, 0 to n * n - 1; table: ``[n * n, d]``. Returns
    ``[T, d]`` in the dtype of table, without holding the rows ``[T, m, d]``. Gradients: weights,
    table (dense). ValueError for shapes that do not fit.

    Source: as above; torch's embedding bag.
    """
    if table.dim() != 2 or weights.dim() != 2 or slots.shape != weights.shape:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (weights, slots, table))
        raise ValueError(f"weights, slots and table must be [T, m], [T, m], [N, d], got {shapes}")
    if slots.dtype != torch.int64:
        raise ValueError(f"slots must be int64, got {slots.dtype}")
    return functional.embedding_bag(
        slots, table, per_sample_weights=weights.to(table.dtype), mode="sum"
    )


def check(query: torch.Tensor, keys: torch.Tensor, k: int) -> None:
    """ValueError, in one line, for arguments that do not fit together."""
    if query.dim() != 3 or query.shape[2] % 2:
        raise ValueError(f"query must be [T, h, e], e even, got {tuple(query.shape)}")
    heads, width = query.shape[1], query.shape[2] // 2
    if keys.dim() != 4 or (*keys.shape[:2], keys.shape[3]) != (heads, 2, width):
        raise ValueError(f"keys must be [{heads}, 2, n, {width}], got {tuple(keys.shape)}")
    if not 1 <= k <= keys.shape[2]:
        raise ValueError(f"k must be 1 to the {keys.shape[2]} keys of a half, got {k}")
