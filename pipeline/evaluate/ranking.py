"""Exact ranks over the whole catalogue by counting, and the best items by the same tiles.

All comparing of scores in evaluation and recommendation is here. A target is compared with the
very number of its own tile: no score is ever computed in two ways.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.errors import LonghaulError
from pipeline.evaluate.scores import Scores

_GROUP = 64  # columns that top_k looks at together, at most; divides every tile


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


Packed = tuple[torch.Tensor, torch.Tensor]
"""Ids of many queries back to back, int64, and offsets int64 ``[n + 1]``."""


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
    wanted, bounds = _of_everyone(scores, (targets, each))
    _check_ids(wanted, 1, scores.columns, "target")
    query = np.repeat(np.arange(scores.rows), np.diff(bounds))
    masks = _Masks(scores, seen, spared=np.sort(query * scores.columns + wanted))
    ranks = Ranks(np.empty(len(wanted), np.int64), np.empty(len(wanted), np.int64))
    with full_fp32():
        for q in range(-(-scores.rows // scores.shape[0])):
            low = q * scores.shape[0]
            a, b = bounds[low], bounds[min(low + scores.shape[0], scores.rows)]
            # The j-th targets of all queries are compared together, so that each pass over a tile
            # has at most one target a row.
            slot = np.arange(a, b) - bounds[query[a:b]]
            order = a + np.argsort(slot, kind="stable")
            sizes = np.bincount(slot, minlength=1).tolist()
            higher, ties = _count(
                scores,
                q,
                torch.from_numpy(query[order] - low).to(scores.device),
                torch.from_numpy(wanted[order]).to(scores.device),
                sizes,
                masks,
                name,
            )
            ranks.higher[order] = higher.cpu().numpy()
            ranks.ties[order] = ties.cpu().numpy()
    own = slice(bounds[scores.own.start], bounds[scores.own.stop])
    return Ranks(ranks.higher[own], ranks.ties[own])


def _of_everyone(scores: Scores, packed: Packed) -> tuple[np.ndarray, np.ndarray]:
    """What all workers that rank together ask, a place for each row of the scores."""
    parts = scores.everyone(tuple(part.cpu().numpy() for part in packed))
    ids = np.concatenate([ids for ids, _ in parts])
    # Rows that fill a worker's share up ask nothing.
    lengths = np.zeros((len(parts), scores.rows // len(parts)), np.int64)
    for row, (_, bounds) in zip(lengths, parts, strict=True):
        row[: len(bounds) - 1] = np.diff(bounds)
    return ids, np.concatenate([[0], np.cumsum(lengths)])


def _count(
    scores: Scores,
    q: int,
    at: torch.Tensor,
    targets: torch.Tensor,
    sizes: list[int],
    masks: "_Masks",
    name: Callable[[int], str],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Higher and tied candidates of the pairs (``at``, ``targets``) of one row of tiles."""
    width = scores.shape[1]
    flat_masks = masks.of(q)
    goal = scores.total(scores.guess(q, at, targets))
    held = (targets >= scores.held.start) & (targets < scores.held.stop)
    flags = goal.new_empty(scores.shape)  # 0.0 and 1.0: much faster to sum than booleans
    for _ in range(3):
        higher = torch.zeros(len(at), dtype=torch.int64, device=scores.device)
        reached = torch.zeros_like(higher)
        exact = torch.zeros_like(goal)
        health = goal.new_zeros(scores.shape[0])
        for i in scores.tiles:
            tile = scores.tile(q, i)
            _mask(tile, i, scores.held, flat_masks[i], health)
            column = targets - i * width
            inside = held & (column >= 0) & (column < width)
            exact = torch.where(inside, tile[at, column.clamp(0, width - 1)], exact)
            first = 0
            for size in sizes:
                rows = at[first : first + size]
                part = tile if size == len(tile) else tile[rows]
                mine, buffer = goal[first : first + size, None], flags[:size]
                higher[first : first + size] += torch.gt(part, mine, out=buffer).sum(1).long()
                reached[first : first + size] += torch.ge(part, mine, out=buffer).sum(1).long()
                first += size
        if not torch.isfinite(scores.total(health)).all():
            _refuse_non_finite(scores, q, name)
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
    masks = _Masks(scores, seen, spared=np.empty(0, np.int64))
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
                _mask(tile, i, scores.held, flat_masks[i], health)
                barred.mask(tile, i)
                lists.add(tile[:live], i * width)
            if not torch.isfinite(scores.total(health)).all():
                _refuse_non_finite(scores, q, name)
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
    parts = scores.everyone(tuple(part.cpu() for part in lists))
    ids, values = (torch.cat([part[n][scores.own] for part in parts], dim=1) for n in (0, 1))
    # Workers hold ids in order, so equal scores stay in it.
    order = torch.sort(values, dim=1, descending=True, stable=True).indices
    order = order[:, : lists[0].shape[1]]
    best = ids.gather(1, order), values.gather(1, order)
    return best[0].to(scores.device), best[1].to(scores.device)


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


class _Masks:
    """Where the seen items of each query lie in the tiles, without those that are spared.

    spared: sorted numbers ``query * columns + item`` of pairs that stay candidates. An item that
    is seen twice is masked twice, which changes nothing.
    """

    def __init__(self, scores: Scores, seen: Packed | None, spared: np.ndarray) -> None:
        self._scores = scores
        self._pairs = np.empty(0, np.int64)
        self._bounds = np.zeros(scores.rows + 1, np.int64)
        if seen is not None:
            ids, bounds = _of_everyone(scores, seen)
            _check_ids(ids, 0, scores.columns, "seen item")
            pairs = np.repeat(np.arange(scores.rows) * scores.columns, np.diff(bounds)) + ids
            keep = np.ones(len(pairs), dtype=bool)
            if len(spared):
                place = np.searchsorted(spared, pairs).clip(max=len(spared) - 1)
                keep = spared[place] != pairs
            self._pairs = pairs[keep]
            self._bounds = np.concatenate([[0], np.cumsum(keep)])[bounds]

    def of(self, q: int) -> list[torch.Tensor]:
        """For each tile of row ``q`` the flat positions that are seen; int64, on the device."""
        queries, width = self._scores.shape
        columns = self._scores.columns
        rows = slice(q * queries, min((q + 1) * queries, self._scores.rows) + 1)
        low, high = self._bounds[rows][[0, -1]]
        row, item = np.divmod(self._pairs[low:high], columns)
        tile, column = np.divmod(item, width)
        flat = (row - q * queries) * width + column
        cuts: list[int] = []
        if columns > width:
            order = np.argsort(tile, kind="stable")
            flat = flat[order]
            cuts = np.searchsorted(tile[order], np.arange(1, -(-columns // width))).tolist()
        return list(torch.tensor_split(torch.from_numpy(flat).to(self._scores.device), cuts))


def _mask(
    tile: torch.Tensor, i: int, held: range, seen: torch.Tensor, health: torch.Tensor
) -> None:
    """Put -inf on whatever is no candidate here; first add the rows' sums to ``health``.

    A sum with a non-finite term is never finite, and costs far less than asking each score.
    """
    first = i * tile.shape[1]
    if i == 0:
        tile[:, 0] = 0  # whatever the table holds for item 0 is no error
    health += tile.sum(1)
    tile[:, : max(1, held.start) - first if first <= held.start else 0] = -torch.inf
    tile[:, max(0, held.stop - first) :] = -torch.inf
    tile.view(-1).index_fill_(0, seen, -torch.inf)


def _refuse_non_finite(scores: Scores, q: int, name: Callable[[int], str]) -> None:
    """Raise for the first score in row of tiles ``q`` that is not finite.

    There may be none: finite scores near the end of the range can have a sum beyond it.
    """
    first = next(filter(None, scores.everyone(_first_non_finite(scores, q))), None)
    if first is None:
        return
    row, item, score = first
    own = range(scores.own.start, scores.own.stop)
    whose = scores.everyone(name(row - own.start) if row in own else None)
    raise LonghaulError(
        f"the score of item {item} for {next(filter(None, whose), 'nobody')} is {score}: a model "
        "that has diverged cannot be ranked"
    )


def _first_non_finite(scores: Scores, q: int) -> tuple[int, int, float] | None:
    """Row, item and score of the first one among those held here."""
    queries, width = scores.shape
    for i in scores.tiles:
        tile = scores.tile(q, i)[: scores.rows - q * queries]
        if i == 0:
            tile[:, 0] = 0
        bad = ~torch.isfinite(tile)
        if bad.any():
            row, column = (int(index) for index in bad.nonzero()[0])
            return q * queries + row, i * width + column, float(tile[row, column])
    return None


def _check_ids(ids: np.ndarray, low: int, columns: int, what: str) -> None:
    if len(ids) and not (low <= ids.min() and ids.max() < columns):
        wrong = ids.max() if ids.max() >= columns else ids.min()
        raise LonghaulError(
            f"{what} {wrong} is not in the catalogue of {columns - 1} items that is scored"
        )


@contextmanager
def full_fp32() -> Iterator[None]:
    """Products of fp32 in fp32, though training may allow TF32 or bf16 for them."""
    mkldnn = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    backends = (torch.backends.cuda.matmul, mkldnn)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
