"""From ranks to metrics: HR, recall, NDCG and MRR of each user."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from pipeline.evaluate.ranking import Ranks

Ties = Literal["against", "random"]


def user_metrics(
    ranks: Ranks, offsets: np.ndarray, ks: Sequence[int], ties: Ties
) -> dict[str, np.ndarray]:
    """Each user's ``hr@k``, ``recall@k``, ``ndcg@k``, ``mrr@k`` and, for ties against, ``mrr``.

    ranks: of ``m`` targets. offsets: int64 ``[U + 1]``; user ``u`` has targets ``offsets[u]`` up to
    ``offsets[u + 1]``, one at least. Returns float64 ``[U]`` by name.

    A user has one ranked list of all candidates, his targets among them, and every metric follows
    from the positions of the targets in it: a target stands one lower for each of his other
    targets above it. With ``n`` targets and ``p`` the positions,

    - hr@k: 1 where any p <= k
    - recall@k: (number of p <= k) / n; with n > k it cannot reach 1
    - ndcg@k: sum of 1 / log2(1 + p) over p <= k, over the same sum for p = 1..min(k, n)
      (Jaervelin and Kekaelaeinen 2002, binary gains)
    - mrr@k: 1 / (smallest p) where that is <= k, else 0; mrr: without the limit

    ties: ``against`` puts items that score like a target above it (equal targets share their
    places); ``random`` gives the expectation over random orders of equal scores (McSherry and
    Najork 2008), which for mrr without a limit has no short form and is left out.
    """
    owner, higher, width, nth = _places(ranks, offsets, ties)
    users, number = len(offsets) - 1, np.diff(offsets)
    longest = max(ks)
    near = higher < longest  # the others cannot be in any of the lists
    owner, h, w, i = owner[near], higher[near, None], width[near, None], nth[near, None]

    # [targets, places]: whether the target stands at place p, and the chance that it has not come
    # up in the first p places. A target is uniform on its w tied places; of several targets among
    # the same ones, number i is asked given that numbers 0..i - 1 have not come up either.
    place = np.arange(1, longest + 1)
    there = ((place > h) & (place <= h + w)) / w
    passed = np.clip(place - h, 0, w)
    absent = np.clip(w - passed - i, 0, None) / (w - i)

    hits = np.zeros((users, longest))
    np.add.at(hits, owner, there)
    missed = np.ones((users, longest))
    np.multiply.at(missed, owner, absent)

    discount = 1 / np.log2(1 + place)
    found = np.cumsum(hits, axis=1)
    gain = np.cumsum(hits * discount, axis=1)
    best = np.cumsum(discount)
    first = np.concatenate([np.ones((users, 1)), missed[:, :-1]], axis=1) - missed
    reciprocal = np.cumsum(first / place, axis=1)

    metrics: dict[str, np.ndarray] = {}
    for k in ks:
        metrics[f"hr@{k}"] = 1 - missed[:, k - 1]
        metrics[f"recall@{k}"] = found[:, k - 1] / number
        metrics[f"ndcg@{k}"] = gain[:, k - 1] / best[np.minimum(k, number) - 1]
        metrics[f"mrr@{k}"] = reciprocal[:, k - 1]
    if ties == "against":
        # Within a user places ascend, so the first target is the best.
        metrics["mrr"] = 1 / (1.0 + higher[offsets[:-1]])
    return metrics


def _places(
    ranks: Ranks, offsets: np.ndarray, ties: Ties
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Owner, places above, tied places, and number among the owner's equal targets; ``[m]`` each.

    Sorted by owner and rank. A target is at one of places ``above + 1`` to ``above + tied``.
    """
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    rank = ranks.pessimistic
    order = np.lexsort((rank, owner))
    rank = rank[order]
    # Targets of one user with one rank have one score: a higher score reaches fewer items.
    fresh = np.ones(len(rank), dtype=bool)
    fresh[1:] = (rank[1:] != rank[:-1]) | (owner[1:] != owner[:-1])
    group = np.cumsum(fresh) - 1
    start = np.flatnonzero(fresh)
    nth = np.arange(len(rank)) - start[group]
    if ties == "random":
        return owner, ranks.higher[order], 1 + ranks.ties[order], nth
    size = np.diff(np.append(start, len(rank)))[group]
    return owner, rank - size + nth, np.ones_like(rank), np.zeros_like(nth)


def half_places(ranks: Ranks, offsets: np.ndarray, ties: Ties) -> np.ndarray:
    """The sum of the ranks of each user's targets, in half places: int64 ``[U]``.

    Ranks are positions in the one list of ``user_metrics``; with random ties their expectation.
    """
    owner, higher, width, _ = _places(ranks, offsets, ties)
    sums = np.zeros(len(offsets) - 1, np.int64)
    np.add.at(sums, owner, 2 * higher + width + 1)
    return sums
