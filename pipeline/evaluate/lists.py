"""The best items of each query over the whole catalogue, by the tiles that ranks are counted in."""

from collections.abc import Callable

import numpy as np
import torch

from pipeline.evaluate.scores import Scores
from pipeline.evaluate.tiles import Masks, Packed, full_fp32, mask, refuse_non_finite

_GROUP = 64  # columns that are looked at together, at most; divides every tile


def top_k(
    scores: Scores,
    k: int,
    seen: Packed | None = None,
    name: Callable[[int], str] = "query {}".format,
    *,
    candidates: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``k`` best candidates of each query, best first, equal scores by lower item id.

    Returns items int64 ``[n, k]`` and their scores ``[n, k]``, on the scores' device; where fewer
    than ``k`` candidates are left, item 0 with score -inf. candidates: bool ``[V + 1]``, the items
    that may be in a list, seen or not by the rule of ``seen``; None for all. Memory beside the
    result: one tile, and lists of up to ``1.5 k`` items a query of a tile; where most items of a
    tile get into the lists, as where ids rise with the scores, up to two tiles more.

    Errors as in ``rank_targets``; tiles without any candidate are not computed, nor looked at.
    """
    queries, width = scores.shape
    masks = Masks(scores, seen, spared=np.empty(0, np.int64))
    barred = _Barred(scores, candidates)
    items, values = [], []
    with full_fp32():
        for q in range(-(-scores.rows // queries)):
            live = min(queries, scores.rows - q * queries)
            lists = _Lists(live, k, scores)
            health = torch.zeros(queries, dtype=scores.dtype, device=scores.device)
            flat_masks = masks.of(q)
            for i in scores.tiles:
                if barred.all_of(i):
                    continue
                tile = scores.tile(q, i)
                mask(tile, i, scores.held, flat_masks[i], health)
                barred.mask(tile, i)
                lists.add(tile[:live], i * width)
            if not torch.isfinite(scores.total(health)).all():
                refuse_non_finite(scores, q, name)
            kept, best = lists.sorted()
            items.append(kept)
            values.append(best)
    if not items:
        empty = torch.zeros(0, k, dtype=scores.dtype, device=scores.device)
        return empty.long(), empty
    found = torch.cat(items), torch.cat(values)
    return _best_of(scores, found) if scores.together else found


def _best_of(
    scores: Scores, lists: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The lists of this worker's queries from everyone's lists, each of other items."""
    ids, values = (scores.dealt_back(part).flatten(1) for part in lists)
    # Workers hold ids in order, so equal scores stay in it.
    order = torch.sort(values, dim=1, descending=True, stable=True).indices
    order = order[:, : lists[0].shape[1]]
    return ids.gather(1, order), values.gather(1, order)


class _Lists:
    """The ``k`` best items of each query of a row of tiles, tile after tile.

    Few items of a tile get into a list, so a tile is searched by groups: a group matters where its
    peak beats the last of the list (a later item has a higher id, so it must beat it, not equal
    it). What is found is sorted in when it has become half as much as the lists: until then the
    last of a list is too low, which lets in more than is needed but leaves nothing out.
    """

    def __init__(self, queries: int, k: int, scores: Scores) -> None:
        device, width = scores.device, scores.shape[1]
        self._kept = torch.zeros(queries, k, dtype=torch.int64, device=device)
        self._best = torch.full((queries, k), -torch.inf, dtype=scores.dtype, device=device)
        self._found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._count = 0
        # Twice as many groups as the list is long, or the k-th best peak would say little.
        self._group = _GROUP
        while self._group > 1 and width // self._group < 2 * k:
            self._group //= 2

    def add(self, tile: torch.Tensor, first: int) -> None:
        """A tile of the items ``first`` onwards, ``[queries, width]``; -inf is no candidate."""
        queries, k = self._kept.shape
        groups = tile.view(queries, -1, self._group)
        peaks = groups.amax(2) if self._group > 1 else tile
        low = self._best[:, -1:]
        matters = peaks > low
        row, group = matters.nonzero(as_tuple=True)
        high = low
        if len(row) > queries * k and k <= peaks.shape[1]:
            # k better peaks are k better items.
            high = peaks.topk(k, dim=1).values[:, -1:]
            row, group = (matters & (peaks >= high)).nonzero(as_tuple=True)
        values = groups[row, group]
        place, column = ((values > low[row]) & (values >= high[row])).nonzero(as_tuple=True)
        ids = first + group[place] * self._group + column
        self._found.append((row[place], ids, values[place, column]))
        self._count += len(ids)
        if 2 * self._count >= queries * k:
            self._sort()

    def sorted(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Items and scores, ``[queries, k]``, best first."""
        self._sort()
        return self._kept, self._best

    def _sort(self) -> None:
        if not self._count:
            return
        queries, k = self._kept.shape
        rows, ids, values = (torch.cat(parts) for parts in zip(*self._found, strict=True))
        # By query, and beside each other: the list, then what was found, in the order of ids.
        order = torch.sort(rows, stable=True).indices
        counts = torch.bincount(rows, minlength=queries)
        rows = rows[order]
        place = k + torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        more = int(counts.max())
        all_values = torch.cat([self._best, self._best.new_full((queries, more), -torch.inf)], 1)
        all_ids = torch.cat([self._kept, self._kept.new_zeros(queries, more)], 1)
        all_values[rows, place], all_ids[rows, place] = values[order], ids[order]
        # Stable: equal scores stay in the order of ids.
        best = torch.sort(all_values, dim=1, descending=True, stable=True).indices[:, :k]
        self._kept, self._best = all_ids.gather(1, best), all_values.gather(1, best)
        self._found, self._count = [], 0


class _Barred:
    """The items that are no candidates for anybody, as -inf to be added to the tiles."""

    def __init__(self, scores: Scores, candidates: torch.Tensor | None) -> None:
        self._width = scores.shape[1]
        self._candidates: torch.Tensor | None = None
        if candidates is not None:
            if candidates.shape != (scores.columns,):
                raise ValueError(f"candidates {tuple(candidates.shape)} of {scores.columns} items")
            self._candidates = candidates.to(scores.device)
            self._some = [bool(part.any()) for part in self._candidates.split(self._width)]

    def all_of(self, i: int) -> bool:
        """Whether no item of tile ``i`` is a candidate."""
        return self._candidates is not None and not self._some[i]

    def mask(self, tile: torch.Tensor, i: int) -> None:
        """Put -inf on what is barred in tile ``i``."""
        if self._candidates is None:
            return
        first = i * self._width
        mine = self._candidates[first : first + self._width]
        penalty = tile.new_zeros(len(mine)).masked_fill_(~mine, -torch.inf)
        tile[:, : len(mine)] += penalty
