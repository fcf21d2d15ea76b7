"""The baseline that knows the last items of a history: what followed them in other histories.

Item-to-item neighbours as in Linden, Smith and York 2003, with the sequential rules of Ludewig and
Jannach 2018 for weights: strong beside neural models where sequences are short.
"""

import numpy as np
import torch

from models.batch import PackedBatch
from pipeline.errors import LonghaulError
from pipeline.evaluate.baselines import popularity, until_train_end
from pipeline.evaluate.blocks import take
from pipeline.evaluate.scores import SparseScores
from pipeline.manifest import Dataset
from pipeline.world import World, current_world

WINDOW = 5  # the largest distance of a pair, and the last items of a history that are asked
NEIGHBOURS = 100  # kept of each item
PAIRS = 1 << 25  # counted at once: half a gigabyte

# Below any weight of a pair that occurs: it orders what no item asked has led to.
_POPULARITY = 1e-9


class CoOccurrenceScorer:
    """Scores items by what followed the last items of a history in the training parts.

    The weight of a rule i -> j is ``c(i, j) / sum over j' of c(i, j')``, where ``c(i, j)`` counts
    the pairs in which j comes 1 to ``window`` events after i; pairs of equal items are none. Of
    each i the ``neighbours`` rules with the highest counts are kept, lower ids first among equals.
    An item's score is the sum of the weights from the last ``window`` items of the history, that
    from the a-th last divided by a, and its share of the training events times 1e-9.

    neighbours: int32 ``[N]``, those of item i at ``offsets[i]`` up to ``offsets[i + 1]`` (int64
    ``[V + 2]``). weights: float64 ``[N]``. counts: training events, int64 ``[V + 1]``.
    """

    def __init__(
        self,
        offsets: np.ndarray,
        neighbours: np.ndarray,
        weights: np.ndarray,
        counts: np.ndarray,
        window: int,
    ) -> None:
        self.offsets, self.neighbours, self.weights = offsets, neighbours, weights
        self._window = window
        self._base = torch.from_numpy(counts * (_POPULARITY / max(1, int(counts.sum()))))

    def score(self, batch: PackedBatch) -> SparseScores:
        """See ``evaluate.Scorer``."""
        offsets, items = batch.offsets.numpy(), batch.items.numpy()
        rows = len(offsets) - 1
        columns = len(self._base)
        pairs, values = [], []
        for place in range(1, self._window + 1):
            row = np.flatnonzero(offsets[1:] - place >= offsets[:-1])
            last = items[offsets[1:][row] - place]
            begin = self.offsets[last]
            number = self.offsets[last + 1] - begin
            found, _ = take(self.neighbours, begin, number)
            pairs.append(np.repeat(row * columns, number) + found)
            values.append(take(self.weights, begin, number)[0] / place)
        unique, inverse = np.unique(np.concatenate(pairs), return_inverse=True)
        return SparseScores(
            rows,
            self._base,
            torch.from_numpy(unique),
            torch.from_numpy(np.bincount(inverse, np.concatenate(values), len(unique))),
        )


def co_occurrence(
    dataset: Dataset,
    window: int = WINDOW,
    neighbours: int = NEIGHBOURS,
    world: World | None = None,
) -> CoOccurrenceScorer:
    """Count the pairs of the users' training parts.

    Items are counted in ranges of ids with at most ``PAIRS`` pairs each, and every range takes a
    pass over the data, by one of the workers (all of them call this): so memory holds the pairs
    of one range, and the kept neighbours of all items. Raises LonghaulError, on all of them, where
    a member is damaged.
    """
    world = world or current_world()
    counts = popularity(dataset, world).counts
    found: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
    failure: LonghaulError | None = None
    try:
        for items in _ranges(counts, window)[world.rank :: world.world_size]:
            most = window * int(counts[items.start : items.stop].sum())
            pairs = _sorted_pairs(dataset, items, window, most)
            found.append((items.start, *_rules(pairs, items, len(counts), neighbours)))
    except LonghaulError as error:
        failure = error
    world.agree(failure)
    parts = sorted((part for parts in world.gather(found) for part in parts), key=lambda p: p[0])
    lengths, ids, weights = (np.concatenate([part[i] for part in parts]) for i in (1, 2, 3))
    offsets = np.concatenate([[0, 0], np.cumsum(lengths)])  # item 0 has none
    return CoOccurrenceScorer(offsets, ids, weights, counts, window)


def _ranges(counts: np.ndarray, window: int) -> list[range]:
    """Ranges of ids, together 1..V, with at most ``PAIRS`` pairs each (or of a single item)."""
    most = np.cumsum(window * counts)
    ranges, start = [], 1
    while start < len(counts):
        stop = int(np.searchsorted(most, most[start - 1] + PAIRS, side="right"))
        ranges.append(range(start, max(stop, start + 1)))
        start = ranges[-1].stop
    return ranges


def _sorted_pairs(dataset: Dataset, items: range, window: int, most: int) -> np.ndarray:
    """All pairs (i, j) with i in a range, at most ``most``, as ``(i - first) * (V + 1) + j``."""
    pairs, filled = np.empty(most, np.int64), 0
    columns = dataset.manifest.catalogue_size + 1
    for number in range(len(dataset)):
        member = dataset.read(number)
        ids, left = member.items.astype(np.int64), until_train_end(member)
        user = np.repeat(np.arange(len(member)), member.lengths())
        for distance in range(1, window + 1):
            first, second = ids[:-distance], ids[distance:]
            paired = (user[:-distance] == user[distance:]) & (left[distance:] > 0)
            paired &= (first >= items.start) & (first < items.stop) & (first != second)
            found = (first[paired] - items.start) * columns + second[paired]
            pairs[filled : filled + len(found)] = found
            filled += len(found)
    pairs = pairs[:filled]
    pairs.sort()
    return pairs


def _rules(
    pairs: np.ndarray, items: range, columns: int, neighbours: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The strongest rules of each item of a range: how many, and all ids and weights in order."""
    starts = np.flatnonzero(np.diff(pairs, prepend=-1))
    count = np.diff(np.append(starts, len(pairs)))
    item, other = np.divmod(pairs[starts], columns)
    every = np.bincount(item, count, len(items))
    # Stable: equal counts stay in the order of ids.
    order = np.lexsort((-count, item))
    item, other, count = item[order], other[order], count[order]
    place = np.arange(len(item)) - np.searchsorted(item, item)
    kept = place < neighbours
    item, other, count = item[kept], other[kept], count[kept]
    lengths = np.bincount(item, minlength=len(items))
    return lengths, other.astype(np.int32), count / every[item]
