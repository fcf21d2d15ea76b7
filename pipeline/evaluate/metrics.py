"""From ranks to means: HR, recall, NDCG and MRR, exact under any distribution of the users.

Each user gives one value per metric. Values are summed as integers, in units of 2^-52, so a sum
is the same to the last bit in whatever order and on however many workers it was formed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.evaluate.ranking import Ranks

_UNIT = 1 << 52  # a value in [0, 1] times this is rounded to an integer: an error below 2^-53
_HALF = 26  # bits; int64 sums of the two halves of such integers cannot overflow

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
    first = -np.diff(missed, axis=1, prepend=1.0)
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


@dataclass(frozen=True)
class MetricSums:
    """Sums over users that add up: ``a + b`` is the sum over the users of both, exactly.

    values: by metric, in units of 2^-52. ranks: over targets, in half places.
    """

    values: dict[str, int]
    users: int
    targets: int
    ranks: int

    @classmethod
    def of(cls, ranks: Ranks, offsets: np.ndarray, ks: Sequence[int], ties: Ties) -> "MetricSums":
        """The sums over the users of ``user_metrics``, which says what is asked for."""
        values = {}
        for name, value in user_metrics(ranks, offsets, ks, ties).items():
            units = np.rint(value * _UNIT).astype(np.int64)
            high, low = int((units >> _HALF).sum()), int((units & ((1 << _HALF) - 1)).sum())
            values[name] = (high << _HALF) + low
        _, higher, width, _ = _places(ranks, offsets, ties)
        return cls(
            values=values,
            users=len(offsets) - 1,
            targets=len(higher),
            ranks=int((2 * higher + width + 1).sum()),
        )

    def __add__(self, other: "MetricSums") -> "MetricSums":
        return MetricSums(
            values={name: value + other.values[name] for name, value in self.values.items()},
            users=self.users + other.users,
            targets=self.targets + other.targets,
            ranks=self.ranks + other.ranks,
        )

    def means(self) -> dict[str, float]:
        """Means over users; ``mean_rank`` over targets. There must be a user."""
        means = {name: value / (self.users * _UNIT) for name, value in self.values.items()}
        means["mean_rank"] = self.ranks / (2 * self.targets)
        return means
