"""Exact ranks over the whole catalogue, by counting.

A target is compared with the very number of its own tile: no score is ever computed in two ways.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from models.ops import count_reaching
from pipeline.errors import LonghaulError
from pipeline.evaluate.scores import Scores
from pipeline.evaluate.tiles import (
    Masks,
    Packed,
    check_ids,
    full_fp32,
    mask,
    of_everyone,
    refuse_non_finite,
)


@dataclass(frozen=True, eq=False)
class Ranks:
    """Where targets stand among all candidates; int64 ``[m]`` each.

    higher: other candidates that score higher. ties: other candidates that score the same.
    """

    higher: np.ndarray
    ties: np.ndarray

    @property
    def pessimistic(self) -> np.ndarray:
        """int64 ``[m]``, from 1: every tie counts against the target."""
        ranks: np.ndarray = 1 + self.higher + self.ties
        return ranks

    @property
    def expected(self) -> np.ndarray:
        """float64 ``[m]``: the mean rank where ties are broken at random."""
        ranks: np.ndarray = 1 + self.higher + self.ties / 2
        return ranks


def rank_targets(
    scores: Scores,
    targets: torch.Tensor,
    offsets: torch.Tensor | None = None,
    seen: Packed | None = None,
    name: Callable[[int], str] = "query {}".format,
) -> Ranks:
    """The rank of each target among all candidates of its query.

    scores: of ``n`` queries. targets: int64 ``[m]``, 1..V; query ``r`` has targets ``offsets[r]``
    up to ``offsets[r + 1]`` (int64 ``[n + 1]``; None: one each). seen: items that are no
    candidates, a set per query: repeats do no harm. Item 0 is never a candidate; a query's own
    targets always are, seen or not, so that all its ranks are positions in one list.

    Scores are compared in their own dtype (fp32 for a model), never with a tolerance. Raises
    LonghaulError with ``name(row)`` of a query that has a score that is no finite number (whether
    or not that item is a candidate), and for ids outside the catalogue.
    """
    each = torch.arange(len(targets) + 1) if offsets is None else offsets
    wanted, bounds = of_everyone(scores, (targets, each))
    check_ids(wanted, 1, scores.columns, "target")
    query = np.repeat(np.arange(scores.rows), np.diff(bounds))
    masks = Masks(scores, seen, spared=np.sort(query * scores.columns + wanted))
    ranks = Ranks(np.empty(len(wanted), np.int64), np.empty(len(wanted), np.int64))
    with full_fp32():
        for q in range(-(-scores.rows // scores.shape[0])):
            low = q * scores.shape[0]
            a, b = bounds[low], bounds[min(low + scores.shape[0], scores.rows)]
            higher, ties = _count(
                scores,
                q,
                torch.from_numpy(query[a:b] - low).to(scores.device),
                torch.from_numpy(wanted[a:b]).to(scores.device),
                masks,
                name,
            )
            ranks.higher[a:b] = higher.cpu().numpy()
            ranks.ties[a:b] = ties.cpu().numpy()
    own = slice(bounds[scores.own.start], bounds[scores.own.stop])
    return Ranks(ranks.higher[own], ranks.ties[own])


def _count(
    scores: Scores,
    q: int,
    at: torch.Tensor,
    targets: torch.Tensor,
    masks: "Masks",
    name: Callable[[int], str],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Higher and tied candidates of the pairs (``at``, ``targets``) of one row of tiles."""
    width = scores.shape[1]
    flat_masks = masks.of(q)
    goal = scores.total(scores.guess(q, at, targets))
    held = (targets >= scores.held.start) & (targets < scores.held.stop)
    for _ in range(3):
        higher = torch.zeros(len(at), dtype=torch.int64, device=scores.device)
        reached = torch.zeros_like(higher)
        exact = torch.zeros_like(goal)
        health = goal.new_zeros(scores.shape[0])
        for i in scores.tiles:
            tile = scores.tile(q, i)
            mask(tile, i, scores.held, flat_masks[i], health)
            column = targets - i * width
            inside = held & (column >= 0) & (column < width)
            exact = torch.where(inside, tile[at, column.clamp(0, width - 1)], exact)
            above, at_least = count_reaching(tile, at, goal)
            higher += above
            reached += at_least
        if not torch.isfinite(scores.total(health)).all():
            refuse_non_finite(scores, q, name)
        for found in (higher, reached, exact):
            scores.total(found)
        # Comparing with anything but the tile's own number could miss a tie or invent one.
        if torch.equal(exact, goal):
            return higher, reached - higher - 1
        goal = exact
    raise LonghaulError(
        f"the {scores.device.type} gave different scores for the same tile of users and items: "
        "it cannot be trusted with exact ranks"
    )
