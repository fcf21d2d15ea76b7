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

_GROUP = 64  # columns that top_k looks at together; divides every tile


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
    m = len(targets)
    wanted = targets.cpu().numpy()
    bounds = np.arange(m + 1) if offsets is None else offsets.cpu().numpy()
    _check_ids(wanted, 1, scores.columns, "target")
    query = np.repeat(np.arange(scores.rows), np.diff(bounds))
    masks = _Masks(scores, seen, spared=np.sort(query * scores.columns + wanted))
    ranks = Ranks(np.empty(m, np.int64), np.empty(m, np.int64))
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
    return ranks


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
    goal = scores.guess(q, at, targets)
    flags = goal.new_empty(scores.shape)  # 0.0 and 1.0: much faster to sum than booleans
    for _ in range(3):
        higher = torch.zeros(len(at), dtype=torch.int64, device=scores.device)
        reached = torch.zeros_like(higher)
        exact = torch.zeros_like(goal)
        health = goal.new_zeros(scores.shape[0])
        for i, flat in enumerate(flat_masks):
            tile = scores.tile(q, i)
            _mask(tile, i, scores.columns, flat, health)
            column = targets - i * width
            inside = (column >= 0) & (column < width)
            exact = torch.where(inside, tile[at, column.clamp(0, width - 1)], exact)
            first = 0
            for size in sizes:
                rows = at[first : first + size]
                part = tile if size == len(tile) else tile[rows]
                mine, buffer = goal[first : first + size, None], flags[:size]
                higher[first : first + size] += torch.gt(part, mine, out=buffer).sum(1).long()
                reached[first : first + size] += torch.ge(part, mine, out=buffer).sum(1).long()
                first += size
        if not torch.isfinite(health).all():
            _refuse_non_finite(scores, q, name)
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
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``k`` best candidates of each query, best first, equal scores by lower item id.

    Returns items int64 ``[n, k]`` and their scores ``[n, k]``, on the scores' device; where fewer
    than ``k`` candidates are left, item 0 with score -inf. Errors as in ``rank_targets``.
    """
    queries, width = scores.shape
    masks = _Masks(scores, seen, spared=np.empty(0, np.int64))
    items, values = [], []
    with full_fp32():
        for q in range(-(-scores.rows // queries)):
            health: torch.Tensor | None = None
            for i, flat in enumerate(masks.of(q)):
                tile = scores.tile(q, i)
                if health is None:
                    health = tile.new_zeros(queries)
                    kept = torch.zeros(queries, k, dtype=torch.int64, device=scores.device)
                    best = tile.new_full((queries, k), -torch.inf)
                _mask(tile, i, scores.columns, flat, health)
                kept, best = _merge(kept, best, tile, i * width)
            assert health is not None
            if not torch.isfinite(health).all():
                _refuse_non_finite(scores, q, name)
            items.append(kept[: scores.rows - q * queries])
            values.append(best[: scores.rows - q * queries])
    if not items:
        empty = torch.zeros(0, k, device=scores.device)
        return empty.long(), empty
    return torch.cat(items), torch.cat(values)


def _merge(
    kept: torch.Tensor, best: torch.Tensor, tile: torch.Tensor, first: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The lists ``kept`` with scores ``best`` after a tile of items ``first`` onwards.

    Few items of a tile get into a list, so the tile is searched by groups: a group matters where
    its peak beats the last of the list (a later item has a higher id, so it must beat it, not
    equal it) and is among the k best peaks (k better peaks are k better items).
    """
    queries, k = kept.shape
    groups = tile.view(queries, -1, _GROUP)
    peaks = groups.amax(2)
    last = best[:, -1:]
    # With fewer groups than k, the k-th best of the items themselves.
    bound = peaks if k <= peaks.shape[1] else tile
    high = bound.topk(min(k, bound.shape[1]), dim=1).values[:, -1:]
    row, group = ((peaks > last) & (peaks >= high)).nonzero(as_tuple=True)
    candidates = groups[row, group]
    place, column = ((candidates > last[row]) & (candidates >= high[row])).nonzero(as_tuple=True)
    row = row[place]
    rows = torch.cat([torch.arange(queries, device=row.device).repeat_interleave(k), row])
    ids = torch.cat([kept.flatten(), first + group[place] * _GROUP + column])
    values = torch.cat([best.flatten(), candidates[place, column]])
    # Stable sorts, by score and then by row: equal scores stay in the order of ids.
    order = torch.sort(values, descending=True, stable=True).indices
    order = order[torch.sort(rows[order], stable=True).indices]
    starts = torch.searchsorted(rows[order], torch.arange(queries, device=row.device))
    order = order[starts[:, None] + torch.arange(k, device=row.device)]
    return ids[order], values[order]


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
            ids, bounds = (part.cpu().numpy() for part in seen)
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
    tile: torch.Tensor, i: int, columns: int, seen: torch.Tensor, health: torch.Tensor
) -> None:
    """Put -inf on whatever is no candidate; first add the rows' sums to ``health``.

    A sum with a non-finite term is never finite, and costs far less than asking each score.
    """
    if i == 0:
        tile[:, 0] = 0  # whatever the table holds for item 0 is no error
    health += tile.sum(1)
    if i == 0:
        tile[:, 0] = -torch.inf
    tile[:, columns - i * tile.shape[1] :] = -torch.inf
    tile.view(-1).index_fill_(0, seen, -torch.inf)


def _refuse_non_finite(scores: Scores, q: int, name: Callable[[int], str]) -> None:
    """Raise for the first score in row of tiles ``q`` that is not finite.

    There may be none: finite scores near the end of the range can have a sum beyond it.
    """
    queries, width = scores.shape
    for i in range(-(-scores.columns // width)):
        tile = scores.tile(q, i)[: scores.rows - q * queries]
        if i == 0:
            tile[:, 0] = 0
        bad = ~torch.isfinite(tile)
        if bad.any():
            row, column = (int(index) for index in bad.nonzero()[0])
            raise LonghaulError(
                f"the score of item {i * width + column} for {name(q * queries + row)} is "
                f"{float(tile[row, column])}: a model that has diverged cannot be ranked"
            )


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
