"""The best slots through one Triton kernel, one program a query.

It fuses what is eager's two stable sorts of the halves, the table of their sums and its sorts:
the halves' scores are read once, k slots are written, and nothing in between leaves registers.
"""

import torch
import triton
import triton.language as tl


def select(halves: torch.Tensor, k: int) -> torch.Tensor:
    """The slots ``[T, h, k]``, best first, from the halves' fp32 scores ``[T, h, 2, n]``."""
    tokens, heads, _, n = halves.shape
    slots = torch.empty(tokens, heads, k, dtype=torch.int64, device=halves.device)
    if slots.numel():
        select_kernel[(tokens * heads,)](
            halves.contiguous(),
            slots,
            K=k,
            N=n,
            KEYS=triton.next_power_of_2(n),
            RANKS=triton.next_power_of_2(k),
            num_warps=1 if k <= 16 else 4,
        )
    return slots


@triton.jit
def best_of_half(
    scores: tl.tensor,
    K: tl.constexpr,
    N: tl.constexpr,
    KEYS: tl.constexpr,
    RANKS: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """The K best scores in falling order and their places, of equal ones the lowest place first."""
    place = tl.arange(0, KEYS)
    rank = tl.arange(0, RANKS)
    left = tl.load(scores + place, mask=place < N, other=float("-inf"))
    open_places = place < N
    best_scores = tl.full((RANKS,), float("-inf"), tl.float32)
    best_places = tl.zeros((RANKS,), tl.int64)
    for taken in range(K):
        best = tl.max(left, 0)
        # No place has a score that is not a number: any will do then, but it must be one.
        at = tl.minimum(tl.min(tl.where(open_places & (left == best), place, KEYS), 0), N - 1)
        best_scores = tl.where(rank == taken, best, best_scores)
        best_places = tl.where(rank == taken, at.to(tl.int64), best_places)
        open_places = open_places & (place != at)
        left = tl.where(open_places, left, float("-inf"))
    return best_scores, best_places


@triton.jit
def select_kernel(
    halves: tl.tensor,
    slots: tl.tensor,
    K: tl.constexpr,
    N: tl.constexpr,
    KEYS: tl.constexpr,
    RANKS: tl.constexpr,
) -> None:
    query = tl.program_id(0).to(tl.int64)
    scores = halves + query * 2 * N
    first_scores, first_places = best_of_half(scores, K, N, KEYS, RANKS)
    second_scores, second_places = best_of_half(scores + N, K, N, KEYS, RANKS)
    sums = first_scores[:, None] + second_scores[None, :]
    places = first_places[:, None] * N + second_places[None, :]
    # The pair of ranks (a, b) comes after all other pairs of ranks up to a and up to b.
    rank = tl.arange(1, RANKS + 1)
    open_pairs = rank[:, None] * rank[None, :] <= K
    for taken in range(K):
        left = tl.where(open_pairs, sums, float("-inf"))
        best = tl.max(tl.max(left, 1), 0)
        of_best = tl.where(open_pairs & (left == best), places, N * N)
        slot = tl.minimum(tl.min(tl.min(of_best, 1), 0), N * N - 1)
        tl.store(slots + query * K + taken, slot)
        open_pairs = open_pairs & (places != slot)
